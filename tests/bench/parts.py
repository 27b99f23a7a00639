"""The parts of the benchmark: which requests are sent, how many at once, and how long."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

MODEL: Final = "gpt-4o-mini"
_TOKENS_PLAIN: Final = 120  # a reply of about 1 KB
_SYSTEM: Final = (
    "You are a helpful assistant. Answer in plain words, briefly, and say so when you do not know."
)
# Role, finish and [DONE]: what a stream has beside its chunks with content.
_EVENTS_BESIDE: Final = 3
_PARAGRAPH: Final = (
    "The quick brown fox jumps over the lazy dog while the seven wizards wait for the night train. "
    "Nobody on the platform could say when it had last been on time, nor where it went in winter. "
)
_NOT_QUICK: Final = ("plain-c128", "long-prompt")
LONG_PROMPT_BYTES: Final = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Part:
    """One kind of load. Closed loop if `connections`, else open loop of `total` requests over `ramp_seconds`.

    `beside`: whether direct and nginx take part too: they are context, and slow streams take long.
    `rate_of_saturation`: the open loop's rate as a share of what the slower proxy reached at C=32.
    """

    name: str
    title: str
    tokens: int = _TOKENS_PLAIN
    delay_ms: int = 0
    stream: bool = False
    connections: int = 0
    seconds: float = 0.0
    total: int = 0
    ramp_seconds: float = 0.0
    rate_of_saturation: float = 0.0
    beside: Literal["always", "first round", "never"] = "always"
    reads_memory: bool = False
    long_prompt: bool = False

    @property
    def stream_seconds(self) -> float:
        return (self.tokens - 1) * self.delay_ms / 1000

    @property
    def expected_events(self) -> int | None:
        return self.tokens + _EVENTS_BESIDE if self.stream else None

    @property
    def memory_after_seconds(self) -> float | None:
        """When all streams are open."""
        if not self.reads_memory:
            return None
        return self.ramp_seconds + max(0.2, (self.stream_seconds - self.ramp_seconds) / 2)


def _slow(streams: int, name: str) -> Part:
    return Part(
        name=name,
        title=f"{streams:,} slow streams, 20 chunks, 500 ms apart",
        tokens=20,
        delay_ms=500,
        stream=True,
        total=streams,
        ramp_seconds=streams / 500,
        beside="first round",
        reads_memory=True,
    )


SLOW: Final = _slow(1_000, "slow-1000")
SLOW_FULL: Final = _slow(3_000, "slow-3000")

# Memory first: it can only be seen growing where nothing has grown it before.
PARTS: Final = (
    SLOW,
    Part(name="plain-c1", title="plain, C=1", connections=1, seconds=1.5, beside="first round"),
    Part(name="plain-c32", title="plain, C=32", connections=32, seconds=2.0),
    Part(name="plain-c128", title="plain, C=128", connections=128, seconds=2.0, beside="first round"),
    Part(
        name="plain-open", title="plain, half of saturation", rate_of_saturation=0.5, seconds=3.0,
        beside="first round",
    ),
    Part(
        name="stream-unpaced", title="200 chunks, no delay, C=16", tokens=200, stream=True,
        connections=16, seconds=2.0,
    ),
    Part(
        name="stream-paced", title="100 streams, 60 chunks, 50 ms apart", tokens=60, delay_ms=50, stream=True,
        total=100, ramp_seconds=1.0, beside="first round",
    ),
    Part(
        name="long-prompt", title="a 1 MB prompt beside 500 streams, 250 ms apart", tokens=12, delay_ms=250,
        stream=True, total=500, ramp_seconds=1.0, beside="never", long_prompt=True,
    ),
)  # fmt: skip


def choose(names: Sequence[str], *, quick: bool, full: bool) -> list[Part]:
    """The parts named by `names` (a name or its beginning), all without any. Raises ValueError."""
    every = [*PARTS, SLOW_FULL]
    if names:
        chosen = [part for part in every if any(part.name.startswith(name) for name in names)]
        if not chosen:
            raise ValueError("There are these parts: " + ", ".join(part.name for part in every))
    elif quick:
        chosen = [part for part in PARTS if part.name not in _NOT_QUICK]
    else:
        chosen = every if full else list(PARTS)
    return [_quick(part) for part in chosen] if quick else chosen


def _quick(part: Part) -> Part:
    beside: Literal["always", "never"] = "always" if part.beside == "always" else "never"
    short = replace(part, seconds=part.seconds * 0.4, beside=beside)
    if part.name == SLOW.name:
        return replace(
            short, total=300, tokens=7, ramp_seconds=0.6, title="300 slow streams, 7 chunks, 500 ms apart"
        )
    if part.name == "stream-paced":
        return replace(short, tokens=30, ramp_seconds=0.5, title="100 streams, 30 chunks, 50 ms apart")
    return short


def request(part: Part, *, port: int, api_key: str) -> str:
    """Head and body of the part's request, as ISO-8859-1."""
    user = f"Say something about meters. [[emulate tokens={part.tokens} delay_ms={part.delay_ms}]]"
    return _request(user, stream=part.stream, port=port, api_key=api_key)


def warm_up_request(part: Part, *, port: int, api_key: str) -> str:
    """As `request`, but never paced, so that it is over at once."""
    user = f"Say something about meters. [[emulate tokens={min(part.tokens, 20)}]]"
    return _request(user, stream=part.stream, port=port, api_key=api_key)


def long_prompt_request(*, port: int, api_key: str) -> str:
    """A plain request with a prompt of about 1 MB of English."""
    text = _PARAGRAPH * (LONG_PROMPT_BYTES // len(_PARAGRAPH))
    return _request(f"[[emulate tokens=20]] {text}", stream=False, port=port, api_key=api_key)


def _request(user: str, *, stream: bool, port: int, api_key: str) -> str:
    messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": user}]
    document: dict[str, object] = {"model": MODEL, "messages": messages}
    if stream:
        document["stream"] = True
    body = json.dumps(document)
    lines = (
        "POST /v1/chat/completions HTTP/1.1",
        f"host: 127.0.0.1:{port}",
        f"authorization: Bearer {api_key}",
        "accept: application/json",
        "content-type: application/json",
        "user-agent: meterway-bench",
        f"content-length: {len(body)}",
    )
    return "\r\n".join((*lines, "", body))
