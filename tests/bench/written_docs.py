"""The part of docs/performance.md that a benchmark writes, between two marks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from tests.bench.report import COLUMNS, Report, as_markdown, goal_rows

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
BEGIN: Final = "<!-- written by `make bench ARGS=--write-docs`: begin -->"
END: Final = "<!-- end -->"


def replace_section(page: str, section: str) -> str:
    """`page` with `section` between its marks. Raises ValueError when a mark is missing."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} ... {END}")
    return f"{head}{BEGIN}\n\n{section.strip()}\n\n{END}{tail}"


def section(found: dict[str, Any], report: Report) -> str:
    """`found`: the document of `report.document`."""
    machine = found["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    lines = [
        f"{machine['at'][:10]}, commit {machine['commit']}: "
        f"{machine['cores']} cores ({machine['processor']}), {machine['memory_mib'] / 1024:.0f} GiB, "
        f"Linux {machine['kernel']}, Python {machine['python']}; "
        f"{versions}. Rounds: {found['rounds']}; medians, in brackets the least and the most of the rounds.",
        found["noise"],
        "### Against the goals",
        as_markdown(goal_rows(report.verdicts())),
        "### All figures",
        as_markdown([COLUMNS, *report.figure_rows()]),
    ]
    services = report.service_rows()
    if services:
        lines += ["### Where our CPU goes", as_markdown(services)]
    if found["idle_cpu_ms_per_second"] is not None:
        lines.append(
            f"Idle, all our processes together take {found['idle_cpu_ms_per_second']:.1f} ms of CPU a second."
        )
    if found["books"]:
        lines.append(found["books_sentence"])
    lines += [f"- {fault}" for fault in found["faults"]]
    return "\n\n".join(line for line in lines if line)


def write(found: dict[str, Any], report: Report, page: Path = PAGE) -> None:
    page.write_text(replace_section(page.read_text(), section(found, report)))
