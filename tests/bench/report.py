"""What a benchmark found, as rows of text: for the terminal, and in Markdown for docs/performance.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.bench.figures import Summary, median, ratios
from tests.bench.goals import Verdict, by_round, judge, memory_kib_per_stream
from tests.bench.parts import Part
from tests.bench.runs import BARE, DIRECT, NGINX, US, Run

Row = tuple[str, ...]
COLUMNS: Row = (
    "part", "subject", "requests/s", "CPU ms/request", "x bare", "CPU us/chunk", "x bare", "p50 ms", "p99 ms",
    "TTFT p50 ms", "TTFT p99 ms", "KiB/stream",
)  # fmt: skip


@dataclass(frozen=True)
class Report:
    """The runs of one benchmark, and what is derived from them."""

    parts: Sequence[Part]
    runs: Sequence[Run]

    def figure_rows(self) -> list[Row]:
        """A row for each part and subject: medians over the rounds; ratios with their least and most."""
        return [
            self._row(part, subject)
            for part in self.parts
            for subject in (DIRECT, NGINX, BARE, US)
            if any(run.part == part.name and run.subject == subject for run in self.runs)
        ]

    def verdicts(self) -> list[Verdict]:
        return judge(self.runs, self.memory)

    def memory(self, part: str, subject: str) -> float | None:
        """KiB grown per open stream: the most of all rounds, for later ones reuse what the first took."""
        runs = [run for run in self.runs if (run.part, run.subject) == (part, subject)]
        grown = [each for run in runs if (each := memory_kib_per_stream(run)) is not None]
        return max(grown, default=None)

    def cpu_by_service(self, part: str) -> dict[str, float]:
        """CPU ms per request of each of our services."""
        runs = [run for run in self.runs if run.part == part and run.subject == US]
        names = sorted({name for run in runs for name in run.result["cpu_seconds_by_name"]})
        return {
            name: median(
                [
                    run.result["cpu_seconds_by_name"].get(name, 0.0) * 1e3 / max(1, run.result["requests"])
                    for run in runs
                ]
            )
            for name in names
        }

    def service_rows(self) -> list[Row]:
        """A row for each part: which service the CPU of a request goes to."""
        table = {part.name: self.cpu_by_service(part.name) for part in self.parts}
        names = sorted({name for row in table.values() for name in row})
        if not names:
            return []
        rows = [
            (part, *(f"{row.get(name, 0.0):.3f}" for name in names)) for part, row in table.items() if row
        ]
        return [("CPU ms/request", *names), *rows]

    def _row(self, part: Part, subject: str) -> Row:
        def middle(figure: str) -> str:
            return _number(median(list(by_round(self.runs, part.name, subject, figure).values())))

        def ratio(figure: str) -> str:
            if subject == BARE:
                return "1"
            found = ratios(
                by_round(self.runs, part.name, subject, figure), by_round(self.runs, part.name, BARE, figure)
            )
            return _summary(Summary.of(found)) if found else ""

        grown = self.memory(part.name, subject)
        return (
            part.name,
            subject,
            middle("requests_per_second"),
            middle("cpu_ms_per_request"),
            ratio("cpu_ms_per_request"),
            middle("cpu_us_per_chunk") if part.stream else "",
            ratio("cpu_us_per_chunk") if part.stream else "",
            "" if part.delay_ms else middle("latency_p50_ms"),
            "" if part.delay_ms else middle("latency_p99_ms"),
            middle("ttft_p50_ms") if part.stream else "",
            middle("ttft_p99_ms") if part.stream else "",
            "" if grown is None else _number(grown),
        )


def goal_rows(verdicts: Sequence[Verdict]) -> list[Row]:
    rows: list[Row] = [("", "must", "goal", "measured", "")]
    for verdict in verdicts:
        goal = verdict.goal
        rows.append(
            (
                goal.title,
                f"{goal.must:g} {goal.unit}",
                f"{goal.goal:g} {goal.unit}",
                f"{_summary(verdict.measured)} {goal.unit}",
                verdict.word,
            )
        )
    return rows


def worst(verdicts: Sequence[Verdict]) -> str:
    """The goal that is missed by the most, or empty."""
    missed = [verdict for verdict in verdicts if verdict.word == "MISSED"]
    if not missed:
        return ""
    first = max(missed, key=lambda verdict: verdict.times_must)
    measured = f"{_number(first.measured.median)} {first.goal.unit}"
    return f"Worst: {first.goal.title}: {measured}, must {first.goal.must:g}."


def as_text(rows: Sequence[Row]) -> str:
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: Row, widths: Sequence[int]) -> str:
    cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
    return "  ".join((row[0].ljust(widths[0]), *cells[1:])).rstrip()


def as_markdown(rows: Sequence[Row]) -> str:
    head, *body = rows
    line: Callable[[Row], str] = lambda row: "| " + " | ".join(row) + " |"  # noqa: E731
    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, body)])


def document(
    report: Report, machine: dict[str, Any], books: dict[str, Any] | None, extra: dict[str, Any]
) -> dict[str, Any]:
    """Everything, for the JSON file. `from_document` reads the runs again."""
    return {
        "machine": machine,
        **extra,
        "books": books,
        "goals": [
            {
                "title": verdict.goal.title,
                "must": verdict.goal.must,
                "goal": verdict.goal.goal,
                "unit": verdict.goal.unit,
                **vars(verdict.measured),
                "verdict": verdict.word,
            }
            for verdict in report.verdicts()
        ],
        "parts": [vars(part) for part in report.parts],
        "runs": [vars(run) for run in report.runs],
    }


def from_document(found: dict[str, Any]) -> Report:
    return Report([Part(**part) for part in found["parts"]], [Run(**run) for run in found["runs"]])


def _number(value: float) -> str:
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:,.{digits}f}"


def _summary(summary: Summary) -> str:
    if summary.least == summary.most:
        return _number(summary.median)
    return f"{_number(summary.median)} ({_number(summary.least)} to {_number(summary.most)})"
