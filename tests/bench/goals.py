"""The figures that must be reached, those we want, and what a benchmark says about each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from tests.bench.figures import Summary, differences, ratios
from tests.bench.runs import BARE, US, Run

Kind = Literal["ratio", "difference", "ours"]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """`kind`: our figure over the bare proxy's, less it, or alone. `must` and `goal` are upper bounds."""

    title: str
    part: str
    figure: str
    kind: Kind
    must: float
    goal: float
    unit: str


GOALS: Final = (
    Goal(
        title="plain request, CPU over all processes", part="plain-c32", figure="cpu_ms_per_request",
        kind="ratio", must=2.0, goal=1.0, unit="x bare",
    ),
    Goal(
        title="added p50 at C=1", part="plain-c1", figure="latency_p50_ms", kind="difference", must=1.2,
        goal=0.7, unit="ms",
    ),
    Goal(
        title="added p99 at half of the saturation rate", part="plain-open", figure="latency_p99_ms",
        kind="difference", must=5.0, goal=2.0, unit="ms",
    ),
    Goal(
        title="stream, unpaced: CPU per chunk", part="stream-unpaced", figure="cpu_us_per_chunk",
        kind="ratio", must=1.5, goal=1.0, unit="x bare",
    ),
    Goal(
        title="stream, paced: CPU per chunk", part="stream-paced", figure="cpu_us_per_chunk", kind="ratio",
        must=1.5, goal=1.0, unit="x bare",
    ),
    Goal(
        title="1,000 slow streams: TTFT p99", part="slow-1000", figure="ttft_p99_ms", kind="ratio", must=1.5,
        goal=1.0, unit="x bare",
    ),
    Goal(
        title="memory per open stream, all processes", part="slow-1000", figure="memory_kib_per_stream",
        kind="ours", must=60.0, goal=30.0, unit="KiB",
    ),
    Goal(
        title="1 MB prompt counted beside 500 streams: longest gap added", part="long-prompt",
        figure="gap_most_ms", kind="difference", must=50.0, goal=10.0, unit="ms",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    goal: Goal
    measured: Summary

    @property
    def word(self) -> str:
        if self.measured.median <= self.goal.goal:
            return "goal reached"
        return "must reached" if self.measured.median <= self.goal.must else "MISSED"

    @property
    def times_must(self) -> float:
        """How far over the bound it is: the worst offender has the largest."""
        return self.measured.median / self.goal.must


def by_round(runs: Sequence[Run], part: str, subject: str, figure: str) -> dict[int, float]:
    return {run.round: run.figure(figure) for run in runs if (run.part, run.subject) == (part, subject)}


def memory_kib_per_stream(run: Run) -> float | None:
    """None when no stream had begun when the memory was read."""
    result = run.result
    if not result["memory_streams"]:
        return None
    return float((result["memory_open_kib"] - result["memory_before_kib"]) / result["memory_streams"])


def judge(runs: Sequence[Run], memory_of: Callable[[str, str], float | None]) -> list[Verdict]:
    """A verdict for each goal whose part was run. `memory_of(part, subject)`: KiB per open stream."""
    verdicts = []
    for goal in GOALS:
        if goal.figure == "memory_kib_per_stream":
            grown = memory_of(goal.part, US)
            values = [] if grown is None else [grown]
        else:
            ours = by_round(runs, goal.part, US, goal.figure)
            bare = by_round(runs, goal.part, BARE, goal.figure)
            values = (ratios if goal.kind == "ratio" else differences)(ours, bare)
        if values:
            verdicts.append(Verdict(goal, Summary.of(values)))
    return verdicts
