"""What the scripts reply, decoded."""

from __future__ import annotations

from typing import Any

from services.meter.quota_answers import (
    ConfigureKey,
    CountInputFirst,
    Fence,
    Held,
    No,
    OpenAnswer,
    Short,
    Stale,
    Wait,
)

_OPEN_WITHOUT_FIGURES: dict[bytes, OpenAnswer] = {
    b"COUNT": CountInputFirst(),
    b"STALE": Stale(),
    b"WAIT": Wait(),
}


def open_answer(reply: list[Any]) -> OpenAnswer:
    status = reply[0]
    if status in (b"OK", b"OLD"):
        epoch, held, granted, final, *numbers, requests, tokens = reply[1].split(b"|")
        available, free, lendable, gseq, largest = map(int, numbers)
        return Held(
            int(epoch), int(held), int(granted), final == b"1", available, free, lendable, gseq, largest,
            int(requests) if requests else None, int(tokens) if tokens else None,
            reply[2] if status == b"OLD" else None,
        )  # fmt: skip
    if status == b"NO":
        return No(reply[1].decode(), tuple(map(int, reply[2:])))
    if status == b"SHORT":
        return Short(*map(int, reply[1:]))
    if status == b"KEY":
        return ConfigureKey(reply[1] == b"1")
    if (simple := _OPEN_WITHOUT_FIGURES.get(status)) is not None:
        return simple
    return fence_answer(reply)


def fence_answer(reply: list[Any]) -> Fence:
    return Fence(reply[1].decode(), int(reply[2]))
