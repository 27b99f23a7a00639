"""`make bench`: what metering costs, beside a proxy that meters nothing. docs/performance.md explains it."""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from services.common.money import usd_to_nanos
from tests.bench import machine, written_docs
from tests.bench.books import Books, check_books
from tests.bench.parts import MODEL, Part, choose
from tests.bench.report import (
    COLUMNS,
    Report,
    as_text,
    document,
    from_document,
    goal_rows,
    worst,
)
from tests.bench.runs import BARE, DIRECT, NGINX, US, Runner, faults, noise
from tests.bench.subjects import (
    Bare,
    Loader,
    MockUpstream,
    Nginx,
    Subject,
    Us,
    find_nginx,
    idle_cpu_seconds,
)
from tests.e2e.stack import ROOT, Customer

_CREDIT_USD: Final = "100000"
_INPUT_USD_PER_MILLION, _OUTPUT_USD_PER_MILLION = "0.15", "0.60"
_TOKENS_PER_MILLION: Final = 1_000_000
_RESULTS: Final = ROOT / "bench-results"


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="3; differences show over rounds")
    parser.add_argument("--quick", action="store_true", help="one short round, under a minute")
    parser.add_argument("--full", action="store_true", help="3,000 slow streams too")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PART", help="this part; may be repeated"
    )
    parser.add_argument(
        "--subject", action="append", choices=(DIRECT, NGINX, BARE, US), help="only this; may be repeated"
    )
    parser.add_argument("--edges", type=int, default=1, metavar="N", help="edge processes of ours")
    parser.add_argument("--meters", type=int, default=1, metavar="N", help="meter processes of ours")
    parser.add_argument("--json", type=Path, metavar="FILE", help="else bench-results/last.json")
    parser.add_argument("--write-docs", action="store_true", help="renew the figures in docs/performance.md")
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", help="run nothing, report on FILE"
    )
    return parser


@dataclass
class Bench:
    """One benchmark. What it starts is stopped when `stack` closes."""

    options: argparse.Namespace
    parts: list[Part]
    folder: Path
    stack: ExitStack
    mock: MockUpstream = field(init=False)
    us: Us | None = None
    customers: list[Customer] = field(default_factory=list)
    credited_nanos: int = 0

    def run(self) -> dict[str, Any]:
        """The document of all that was measured."""
        described = machine.describe()
        self.mock = MockUpstream(self._folder("mock"))
        self.stack.callback(self.mock.stop)
        self.mock.start()
        subjects = self._start_subjects()
        loader = Loader()
        self.stack.callback(loader.stop)
        loader.start()
        ours = next((subject for subject in subjects if subject.name == US), None)
        idle = idle_cpu_seconds(ours, 2.0) * 1e3 if ours else None
        assert self.mock.process is not None
        runner = Runner(
            loader,
            subjects,
            [self.mock.process.pid],
            say=_say,
            new_customer_key=self._new_customer_key if ours else None,
            totals=self.mock.totals,
        )
        rounds = 1 if self.options.quick else self.options.rounds
        runner.run_all(self.parts, rounds)
        books = self._check_books(runner.emitted_for_us) if ours else None
        report = Report(self.parts, runner.runs)
        extra = {
            "rounds": rounds,
            "quick": self.options.quick,
            "edges": self.options.edges,
            "meters": self.options.meters,
            "idle_cpu_ms_per_second": idle,
            "noise": noise(runner.runs),
            "faults": faults(runner.runs),
            "books_sentence": books.sentence() if books else "",
        }
        return document(report, described, books.document() if books else None, extra)

    def _folder(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir()
        return folder

    def _start_subjects(self) -> list[Subject]:
        wanted = self.options.subject or [DIRECT, BARE, US, NGINX]
        subjects: list[Subject] = []
        if DIRECT in wanted:
            assert self.mock.process is not None
            subjects.append(Subject(DIRECT, self.mock.port, "none", {self.mock.process.pid: "mock"}))
        if NGINX in wanted:
            if find_nginx() is None:
                _say("nginx is not installed: left out")
            else:
                nginx = Nginx(self._folder("other"))
                self.stack.callback(nginx.stop)
                subjects.append(nginx.start(self.mock))
        if BARE in wanted:
            bare = Bare(self._folder("bare"))
            self.stack.callback(bare.stop)
            subjects.append(bare.start(self.mock))
        if US in wanted:
            subjects.append(self._start_us())
        return subjects

    def _start_us(self) -> Subject:
        replicas = ("--edges", str(self.options.edges), "--meters", str(self.options.meters))
        self.us = us = Us(
            self._folder("us"), MODEL, _CREDIT_USD, _INPUT_USD_PER_MILLION, _OUTPUT_USD_PER_MILLION, replicas
        )
        self.stack.callback(us.stop)
        subject = us.start(self.mock)
        self.customers.append(us.customer)
        self.credited_nanos += usd_to_nanos(_CREDIT_USD)
        return subject

    def _new_customer_key(self, usd: str) -> str:
        assert self.us is not None
        customer = self.us.stack.new_customer(usd)
        self.customers.append(customer)
        self.credited_nanos += usd_to_nanos(usd)
        return customer.api_key

    def _check_books(self, emitted: dict[str, int]) -> Books:
        assert self.us is not None
        return check_books(
            self.us.stack,
            self.customers,
            self.credited_nanos,
            emitted,
            input_nanos_per_token=usd_to_nanos(_INPUT_USD_PER_MILLION) // _TOKENS_PER_MILLION,
            output_nanos_per_token=usd_to_nanos(_OUTPUT_USD_PER_MILLION) // _TOKENS_PER_MILLION,
        )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print(found: dict[str, Any], report: Report) -> None:
    print(as_text([COLUMNS, *report.figure_rows()]))
    verdicts = report.verdicts()
    if services := report.service_rows():
        print("\n" + as_text(services))
    if verdicts:
        print("\n" + as_text(goal_rows(verdicts)))
    idle = found["idle_cpu_ms_per_second"]
    idle_line = "" if idle is None else f"Idle, our processes take {idle:.1f} ms of CPU a second."
    closing = [worst(verdicts), idle_line, found["noise"], found["books_sentence"], *found["faults"]]
    print("\n" + "\n".join(line for line in closing if line))


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="meterway-bench-", ignore_cleanup_errors=True) as name:
        # Postgres and nginx are other users when we are root.
        Path(name).chmod(0o755)
        yield Path(name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 when figures are void or the books are wrong."""
    parser = _options()
    options = parser.parse_args(arguments)
    if options.source:
        found = json.loads(options.source.read_text())
    else:
        try:
            parts = choose(options.only, quick=options.quick, full=options.full)
        except ValueError as error:
            parser.error(str(error))
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        started_at = time.monotonic()
        with _temporary_folder() as folder, ExitStack() as stack:
            found = Bench(options, parts, folder, stack).run()
        _say(f"{time.monotonic() - started_at:.0f} s")
        file = options.json or _RESULTS / "last.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found, indent=1) + "\n")
    report = from_document(found)
    _print(found, report)
    if options.write_docs:
        written_docs.write(found, report)
    is_exact = found["books"] is None or found["books"]["exact"]
    return 0 if is_exact and not found["faults"] else 1


if __name__ == "__main__":
    sys.exit(main())
