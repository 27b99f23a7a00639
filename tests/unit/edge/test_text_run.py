"""Runs of alike events mean what the same events mean one by one."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.contracts.charging import Admitted, SessionRef
from services.common.money import PriceVector
from services.edge.delivery import Delivery
from services.edge.dialects.openai_chat import CHAT_COMPLETIONS
from services.edge.grant_keeper import GrantKeeper
from services.edge.relay import Relay, StreamEnd
from services.edge.session import Session
from services.edge.text_run import TextRun


def event(content: str, *, ascii_only: bool = False, **extra: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None}
    chunk = {"id": "chatcmpl-1", "choices": [choice], **extra}
    return b"data: " + json.dumps(chunk, separators=(",", ":"), ensure_ascii=ascii_only).encode() + b"\n\n"


def learned(raw: bytes) -> TextRun:
    runs = TextRun(choices=1)
    data = raw[6:-2]
    text = json.loads(data)["choices"][0]["delta"]["content"]
    runs.learn(raw, data, len(text.encode()))
    return runs


def test_a_run_is_taken_whole_and_what_differs_is_left() -> None:
    runs = learned(event("Hello"))
    chunk = event(" you") + event(" there") + b"data: [DONE]\n\n"
    assert runs.take(chunk) == (len(chunk) - 14, " you there")
    assert runs.take(b"data: [DONE]\n\n") == (0, "")
    assert runs.take(event("half")[:-1]) == (0, "")
    assert runs.take(event("one") + event("half")[:-5]) == (len(event("one")), "one")


@pytest.mark.parametrize("text", ['"', 'say "x"', "\n\t", "\\n", "\\ and more"])
def test_escapes_belong_to_the_run(text: str) -> None:
    runs = learned(event("Hello"))
    chunk = event("one") + event(text) + event(" two")
    assert runs.take(chunk) == (len(chunk), f"one{text} two")
    assert runs.take(event(text)) == (len(event(text)), text)


@pytest.mark.parametrize("text", ["\\", "\\\\", "so\\"])
def test_text_that_ends_with_a_backslash_is_read_in_full(text: str) -> None:
    runs = learned(event("Hello"))
    assert runs.take(event(text)) == (0, "")
    assert runs.take(event("one") + event("\n") + event(text)) == (
        len(event("one") + event("\n")),
        "one\n",
    )


def test_what_looks_like_the_end_inside_the_text_is_text() -> None:
    runs = learned(event("Hello", obfuscation="x"))
    text = 'one"},"finish_reason":null}],"obfuscation":"'
    chunk = event("good", obfuscation="y") + event(text, obfuscation="z")
    assert runs.take(chunk) == (len(chunk), f"good{text}")


def test_more_members_behind_an_unescaped_quote_are_read_in_full() -> None:
    runs = learned(event("Hello"))
    other = event("one").replace(b'one"', b'one","refusal":"no"')
    assert runs.take(event("good") + other) == (len(event("good")), "good")


def test_random_fillers_make_no_difference() -> None:
    runs = learned(event("Hello", obfuscation="Xa9"))
    fillers = ["", "b", "Zz09" * 8]
    chunk = b"".join(event(f" {filler}", obfuscation=filler) for filler in fillers)
    assert runs.take(chunk) == (len(chunk), "".join(f" {filler}" for filler in fillers))
    odd = event("no", obfuscation='"')
    assert runs.take(chunk + odd + chunk)[0] == len(chunk)
    assert runs.take(chunk + event("no", usage={"obfuscation": "x"}))[0] == len(chunk)
    assert runs.take(chunk[:-1])[0] == len(chunk) - len(event(f" {fillers[-1]}", obfuscation=fillers[-1]))


def test_text_that_is_no_json_is_read_in_full() -> None:
    runs = learned(event("Hello"))
    for broken in (b"\\x", b"\x00", b"\xff", b"\n"):
        assert runs.take(event("good").replace(b"good", broken)) == (0, "")


@pytest.mark.parametrize(
    ("raw", "text_bytes"),
    [
        (event("Hello"), 4),
        (event("Hello", ascii_only=True, note={"delta": {"content": "Hello"}}), 5),
        (event('say "x"'), 7),
        (event("Hello").replace(b'"index":0', b'"index":1'), 5),
        (b"event: x\n" + event("Hello"), 5),
        (event("Hello").replace(b"data: ", b"data:"), 5),
    ],
)
def test_what_is_not_plain_is_not_learned(raw: bytes, text_bytes: int) -> None:
    runs = TextRun(choices=1)
    runs.learn(raw, raw[raw.index(b"{") : -2], text_bytes)
    assert not runs.is_known


def test_several_choices_are_read_in_full() -> None:
    assert not TextRun(choices=2).is_learning


class _Written(Delivery):
    """A delivery that keeps what it is given."""

    def __init__(self) -> None:
        self.data = b""

    async def write(self, data: bytes) -> None:
        self.data += data


class _Reply:
    def __init__(self, parts: list[bytes]) -> None:
        self._parts = parts

    async def chunks(self) -> Any:
        for part in self._parts:
            yield part


async def relayed(parts: list[bytes]) -> tuple[bytes, StreamEnd, dict[Any, str], int]:
    reader = CHAT_COMPLETIONS.chunk_reader()
    ref = SessionRef("session", "account", "key", 7, 1)
    admitted = Admitted(
        ref, 1, 10**9, 10**6, 10**6, True, 10**12, 40, True, PriceVector(output=1), 1, 1_000_000, 10**9
    )
    session = Session(admitted, 0.0, reader.texts)
    keeper = GrantKeeper(session, None, "gpt-4o")  # type: ignore[arg-type]
    delivery = _Written()
    relay = Relay(
        endpoint=CHAT_COMPLETIONS,
        reader=reader,
        session=session,
        keeper=keeper,
        delivery=delivery,
        wants_usage=False,
        choices=1,
    )
    end = await relay.run(_Reply(parts))  # type: ignore[arg-type]
    return delivery.data + relay.take_unwritten(), end, reader.texts.texts(), session.text_bytes


EVENTS = st.one_of(
    st.text(max_size=8).map(event),
    st.text("abc é中", max_size=5).map(event),
    st.text('ab"\\\n', max_size=5).map(event),
    st.text("abc", max_size=3).map(lambda text: event(text, ascii_only=True, system_fingerprint="fp")),
    st.sampled_from([b": keep-alive\n\n", b'data: {"choices":[]}\n\n', b"data: {]\n\n", event("x") * 3]),
)


@given(events=st.lists(EVENTS, min_size=1, max_size=25), cuts=st.lists(st.integers(1, 3_000), max_size=12))
async def test_however_a_stream_is_split_the_same_is_delivered_and_counted(
    events: list[bytes], cuts: list[int]
) -> None:
    stream = b"".join(events) + b"data: [DONE]\n\n"
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    parts = [stream[begin:end] for begin, end in itertools.pairwise(places)]
    one_by_one = await relayed([stream[place : place + 1] for place in range(len(stream))])
    assert await relayed(parts) == one_by_one
    assert one_by_one[:2] == (b"".join(events), StreamEnd.DONE)
