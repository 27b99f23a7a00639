"""Send a planned answer as a stream of events: pace, shape and faults of its script."""

import asyncio
from typing import Final

from services.emulator.answer import Answer
from services.emulator.ask import error_body
from services.emulator.chunks import Event, events
from services.emulator.log import Row
from services.emulator.script import Fault, parse_fault
from services.emulator.sse import DONE, encoder
from services.emulator.wire import Wire

_YIELD_EVERY: Final = 16
_ENDING_FAULTS: Final = frozenset({"hang_after", "close_after", "end_after", "error_event_after"})


async def send_stream(wire: Wire, answer: Answer, row: Row, headers: list[tuple[str, str]]) -> None:
    """Write the stream as far as the script's fault allows. Raises ClientGone, ConnectionCut."""
    script = answer.script
    fault = parse_fault(script.fault)
    ends_at = fault.number if fault is not None and fault.name in _ENDING_FAULTS else None
    encode = encoder(script)
    await wire.start_stream(headers, encoding=script.encoding)
    if script.first_delay_ms:
        await wire.wait(script.first_delay_ms)
    sent = 0
    for event in events(answer):
        if ends_at is not None and event.part != "lead" and sent >= ends_at:
            assert fault is not None
            await _end_by_fault(wire, fault, encode(_stream_error()))
            return
        if event.part == "content":
            if sent and script.delay_ms:
                await wire.wait(script.delay_ms)
            elif sent % _YIELD_EVERY == _YIELD_EVERY - 1:
                await asyncio.sleep(0)
            sent += 1
        await _send_event(wire, event, row, encode(event.payload))
    if not script.no_done:
        await wire.send(encode(DONE))
    wire.finish_stream()


async def _send_event(wire: Wire, event: Event, row: Row, data: bytes) -> None:
    await wire.send(data)
    if event.part == "content":
        row.sent(event.choice, event.tokens, event.text)
    if event.usage is not None:
        row.usage = event.usage


def _stream_error() -> bytes:
    return error_body(500, "The server had an error while processing your request. Sorry about that!")


async def _end_by_fault(wire: Wire, fault: Fault, error: bytes) -> None:
    match fault.name:
        case "hang_after":
            await wire.hang()
        case "close_after":
            await wire.cut(reset=True)
        case "error_event_after":
            await wire.send(error)
            if fault.word == "silence":
                await wire.hang()
    # An error event ends the stream; end_after ends it as if nothing were missing.
    wire.finish_stream()
