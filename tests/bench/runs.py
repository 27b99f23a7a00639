"""All runs of a benchmark: every part, round after round, the subjects one after the other in each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tests.bench.load import Job
from tests.bench.parts import Part, long_prompt_request, request, warm_up_request
from tests.bench.subjects import Loader, Subject

BUSY_MOST: Final = 0.85
_NOISE_CORES: Final = 0.3
# When the open loop runs alone, without a run that tells where saturation is.
_RATE_UNKNOWN: Final = 250.0
DIRECT, BARE, NGINX, US = "direct", "bare", "nginx", "meterway"


@dataclass(frozen=True)
class Run:
    """One subject's run of one part in one round. `result`: the fields of `load.Result`."""

    part: str
    subject: str
    round: int
    result: dict[str, Any]

    @property
    def cpu_ms_per_request(self) -> float:
        return float(self.result["cpu_seconds"] * 1e3 / max(1, self.result["requests"]))

    @property
    def cpu_us_per_chunk(self) -> float:
        return float(self.result["cpu_seconds"] * 1e6 / max(1, self.result["events"]))

    @property
    def requests_per_second(self) -> float:
        return float(self.result["requests"] / self.result["seconds"])

    def figure(self, name: str) -> float:
        """A property of ours, or a field of the result."""
        return float(getattr(self, name) if hasattr(self, name) else self.result[name])


@dataclass
class Runner:
    """`new_customer_key(usd)` gives the key of a fresh account; None when we are not among the subjects."""

    loader: Loader
    subjects: Sequence[Subject]
    mock_pids: list[int]
    say: Callable[[str], None]
    new_customer_key: Callable[[str], str] | None = None
    totals: Callable[[], dict[str, int]] = dict
    # What the mock upstream emitted in our runs alone.
    emitted_for_us: dict[str, int] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)

    def run_all(self, parts: Sequence[Part], rounds: int) -> None:
        for number in range(rounds):
            for part in parts:
                # Each round another one goes first: what came before must not be always the same.
                turn = number % len(self.subjects)
                for subject in (*self.subjects[turn:], *self.subjects[:turn]):
                    beside = part.beside == "always" or (part.beside == "first round" and number == 0)
                    if beside or subject.name in (BARE, US):
                        self._run(part, subject, number)

    def of(self, part: str, subject: str) -> list[Run]:
        return [run for run in self.runs if (run.part, run.subject) == (part, subject)]

    def _run(self, part: Part, subject: Subject, number: int) -> None:
        job = self._job(part, subject, number)
        before = self.totals() if subject.name == US else {}
        result = self.loader.run(job)
        if subject.name == US:
            for name, value in self.totals().items():
                self.emitted_for_us[name] = self.emitted_for_us.get(name, 0) + value - before[name]
        run = Run(part.name, subject.name, number, result)
        self.runs.append(run)
        chunk = f", {run.cpu_us_per_chunk:.0f} us/chunk" if run.result["events"] else ""
        self.say(
            f"round {number + 1}  {part.name:15} {subject.name:9} "
            f"{run.cpu_ms_per_request:7.3f} CPU ms/request{chunk}, {run.requests_per_second:.0f}/s, "
            f"p50 {result['latency_p50_ms']:.2f} ms, p99 {result['latency_p99_ms']:.2f} ms"
            + (f"  FAILED: {result['failures']}" if result["failures"] else "")
        )

    def _job(self, part: Part, subject: Subject, number: int) -> Job:
        total, rate = part.total, part.total / part.ramp_seconds if part.ramp_seconds else 0.0
        if part.rate_of_saturation:
            rate = self._saturation(number) * part.rate_of_saturation
            total = max(1, round(rate * part.seconds))
        side = ""
        if part.long_prompt:
            # Too little for a hold by bytes, so that the prompt has to be counted.
            poor = subject.name == US and self.new_customer_key is not None
            key = self.new_customer_key("0.10") if poor and self.new_customer_key else subject.api_key
            side = long_prompt_request(port=subject.port, api_key=key)
        return Job(
            host="127.0.0.1",
            port=subject.port,
            request=request(part, port=subject.port, api_key=subject.api_key),
            warm_up_request=warm_up_request(part, port=subject.port, api_key=subject.api_key),
            expected_events=part.expected_events,
            subject_pids=subject.pids,
            subject_names={str(pid): name for pid, name in subject.names.items()},
            mock_pids=[] if subject.name == DIRECT else self.mock_pids,
            connections=part.connections,
            seconds=part.seconds,
            total=total,
            rate=rate,
            memory_after_seconds=part.memory_after_seconds,
            side_request=side,
            side_after_seconds=part.ramp_seconds + part.stream_seconds / 3 if side else 0.0,
        )

    def _saturation(self, number: int) -> float:
        """Requests per second of the slower proxy at C=32, in this round."""
        rates = [
            run.requests_per_second
            for run in self.runs
            if run.part == "plain-c32" and run.subject in (BARE, US) and run.round == number
        ]
        return min(rates) if rates else 2 * _RATE_UNKNOWN


def faults(runs: Sequence[Run]) -> list[str]:
    """What makes figures void: wrong answers, or a client or mock upstream that was itself the limit."""
    found = []
    for run in runs:
        result, where = run.result, f"{run.part}, {run.subject}, round {run.round + 1}"
        found += [f"{where}: {count} x {why}" for why, count in result["failures"].items()]
        if run.subject == DIRECT:
            continue  # there the client and the mock upstream are what is measured
        if result["client_busy"] > BUSY_MOST:
            found.append(f"{where}: the load generator was busy {result['client_busy']:.0%} of the time")
        if result["mock_busy"] > BUSY_MOST:
            found.append(f"{where}: the mock upstream was busy {result['mock_busy']:.0%} of the time")
    return found


def noise(runs: Sequence[Run]) -> str:
    """A sentence on what else kept this machine's cores busy, empty if nothing did."""
    noisy = [run for run in runs if run.result["others_busy"] > _NOISE_CORES]
    if not noisy:
        return ""
    most = max(run.result["others_busy"] for run in noisy)
    late = max(run.result["late_share"] for run in noisy)
    return (
        f"In {len(noisy)} of {len(runs)} runs other work kept more than {_NOISE_CORES} of a core busy "
        f"(at most {most:.1f} cores), and up to {late:.0%} of an open loop's requests left more than 3 ms "
        "late: read the ratios, not the times."
    )
