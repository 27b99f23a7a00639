"""`meterway`: starts everything, one service, or asks a running ledger (see `meterway --help`)."""

from __future__ import annotations

import sys

from services.commands.parser import build_parser


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 done, 1 a difference was found, 2 it could not be done."""
    arguments = build_parser().parse_args(argv)
    # Imported late: a short command must not pay for the imports of a service.
    match arguments.command:
        case "up":
            from services.standalone.up import run_up  # noqa: PLC0415

            return run_up(arguments)
        case "edge" | "meter" | "ledger" | "migrate" if getattr(arguments, "action", None) is None:
            from services.commands.service import run_service  # noqa: PLC0415

            return run_service(arguments.command)
        case _:
            from services.commands.operator import run_operator_command  # noqa: PLC0415

            return run_operator_command(arguments)


if __name__ == "__main__":
    sys.exit(main())
