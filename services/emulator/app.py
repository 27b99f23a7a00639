"""The emulator's routes, and the story of one request from its bytes to its row in the log."""

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from services.emulator.answer import plan
from services.emulator.ask import CountText, Kind, Refused, error_body, parse, tokens_of_text
from services.emulator.control import add_control_routes, json_answer
from services.emulator.log import ROWS_MAX, EmissionLog, Row, safe_headers
from services.emulator.plain import MODELS, completion_body, embedding_body, model_body, moderation_body
from services.emulator.script import Fault, Script, ScriptError, parse_fault, script_for
from services.emulator.state import EMULATOR, Emulator
from services.emulator.stream import send_stream
from services.emulator.wire import ClientGone, ConnectionCut, Wire

BODY_BYTES_MAX: Final = 256 * 1024 * 1024
Headers = list[tuple[str, str]]


async def _handle(request: web.Request, *, kind: Kind) -> web.StreamResponse:
    """Answer one POST, and write its row however it ends."""
    emulator = request.app[EMULATOR]
    row = Row(request_id=emulator.next_id(kind), path=request.path, headers=safe_headers(request.headers))
    emulator.open[row.request_id] = row
    wire = None
    try:
        wire = Wire(request, row, emulator.watcher)
        emulator.wires.add(wire)
        try:
            await _answer(request, emulator, kind, row, wire)
        except Refused as refused:
            await wire.answer(refused.status, _headers(row), refused.body)
        return wire.written()
    except (ClientGone, ConnectionCut, ConnectionError, asyncio.CancelledError) as reason:
        if emulator.stopping:
            row.disconnected_at_ms = None
        elif not isinstance(reason, ConnectionCut):
            row.client_disconnected = wire is None or wire.transport.is_closing()
            if row.client_disconnected and row.disconnected_at_ms is None:
                row.disconnected_at_ms = time.time_ns() // 1_000_000
        if isinstance(reason, asyncio.CancelledError) or wire is None:
            raise
        return wire.written()
    finally:
        if wire is not None:
            emulator.watcher.wires.discard(wire)
            emulator.wires.discard(wire)
        del emulator.open[row.request_id]
        emulator.log.add(row)


def _headers(row: Row, content_type: str = "application/json") -> Headers:
    return [("content-type", content_type), ("x-request-id", row.request_id), ("openai-processing-ms", "1")]


async def _answer(request: web.Request, emulator: Emulator, kind: Kind, row: Row, wire: Wire) -> None:
    emulator.check_key(request, row)
    try:
        raw = await request.read()
    except web.HTTPException as error:
        raise Refused(error.status, f"The body can't be read: {error.reason}.") from None
    except web.RequestPayloadError:
        await wire.answer(
            400, _headers(row), error_body(400, "The body does not match its content-encoding.")
        )
        # The rest of such a body can't be skipped, so neither can the connection go on.
        request.protocol.force_close()
        return
    row.note_body(raw)
    ask = parse(kind, raw, count_text=emulator.count_text)
    row.model, row.stream, row.messages_count = ask.model, ask.stream, ask.messages_count
    row.max_tokens, row.include_usage = ask.limit_tokens, ask.include_usage
    emulator.check_model(ask.model)
    try:
        script = script_for(
            emulator.next_defaults(), header=request.headers.get("x-emulate"), message=ask.last_text
        )
    except ScriptError as error:
        raise Refused(400, str(error), code="bad_directive") from None
    fault = parse_fault(script.fault)
    row.fault = script.fault or None
    wire.write_bytes, wire.write_gap_ms = script.write_bytes, script.write_gap_ms
    if fault is not None:
        if fault.name == "slow_headers":
            wire.head_gap_ms = float(fault.number)
        elif await _fail_first(wire, fault, row):
            return
    answer = plan(ask, script, response_id=row.request_id, created=row.arrived_at_ms // 1000)
    if ask.stream:
        headers = _headers(row, "text/event-stream; charset=utf-8")
        await send_stream(wire, answer, row, [*headers, ("cache-control", "no-cache")])
        return
    if script.first_delay_ms:
        await wire.wait(script.first_delay_ms)
    usage: dict[str, Any] | None
    match kind:
        case "embedding":
            body, usage = embedding_body(ask)
        case "moderation":
            body, usage = moderation_body(ask, row.request_id), None
        case _:
            body, usage = completion_body(answer)
            await _send_plain(wire, body, script, fault, _headers(row))
            row.usage = usage
            for choice in range(ask.choices):
                row.sent(choice, answer.tokens + answer.reasoning, answer.shown_text)
            return
    await _send_plain(wire, body, script, fault, _headers(row))
    row.usage = usage


_CUTS: Final = frozenset({"truncate_plain", "close_after", "hang_after"})


async def _send_plain(wire: Wire, body: bytes, script: Script, fault: Fault | None, headers: Headers) -> None:
    if fault is None or fault.name not in _CUTS:
        await wire.answer(200, headers, body, encoding=script.encoding)
        return
    # Without a number the cut is in the middle.
    cut = fault.number if ":" in script.fault else len(body) // 2
    await wire.answer(200, headers, body, encoding=script.encoding, cut_after_bytes=cut)
    if fault.name == "hang_after":
        await wire.hang()
    await wire.cut(reset=fault.name == "close_after")


async def _fail_first(wire: Wire, fault: Fault, row: Row) -> bool:
    """Do a fault that comes before any answer; False if this one comes later."""
    match fault.name:
        case "status":
            headers = _headers(row)
            if fault.retry_after_seconds is not None:
                headers.append(("retry-after", str(fault.retry_after_seconds)))
            await wire.answer(
                fault.number,
                headers,
                error_body(fault.number, f"The emulator was told to fail with {fault.number}."),
            )
        case "garbage":
            page = b"<!DOCTYPE html><html><body><h1>Bad gateway</h1></body></html>"
            await wire.answer(200, _headers(row, "text/html"), page)
        case "hang_before_headers":
            await wire.hang()
        case "close_before":
            await wire.cut(reset=False)
        case _:
            return False
    return True


async def _models(request: web.Request) -> web.Response:
    emulator = request.app[EMULATOR]
    row = Row(request_id="", path=request.path, headers={})
    models = MODELS if emulator.models is None else tuple(sorted(emulator.models))
    try:
        emulator.check_key(request, row)
        if "model" in request.match_info:
            emulator.check_model(request.match_info["model"])
            return json_answer(model_body(request.match_info["model"]))
    except Refused as refused:
        return web.Response(status=refused.status, body=refused.body, content_type="application/json")
    return json_answer({"object": "list", "data": [model_body(model) for model in models]})


async def _lifetime(app: web.Application) -> AsyncIterator[None]:
    yield
    emulator = app[EMULATOR]
    await emulator.watcher.close()
    emulator.log.close()


async def _hang_up(app: web.Application) -> None:
    # A stream that hangs on purpose must not hold the shutdown up.
    app[EMULATOR].stopping = True
    for wire in tuple(app[EMULATOR].wires):
        wire.transport.abort()


def make_app(
    *,
    api_keys: frozenset[str] | None = None,
    models: frozenset[str] | None = None,
    log_file: Path | None = None,
    rows_max: int = ROWS_MAX,
    defaults: Script | None = None,
    count_text: CountText = tokens_of_text,
) -> web.Application:
    """The emulator as an application.

    `api_keys`: None lets every caller in. `models`: None serves any model. `defaults`: how requests are
    answered that don't say. `count_text`: counts prompt tokens in place of a quarter of the bytes.
    """
    emulator = Emulator(
        api_keys=api_keys,
        models=models,
        defaults=defaults or Script(),
        log=EmissionLog(file=log_file, rows_max=rows_max),
        count_text=count_text,
    )
    app = web.Application(client_max_size=BODY_BYTES_MAX)
    app[EMULATOR] = emulator
    kinds: dict[str, Kind] = {
        "/v1/chat/completions": "chat",
        "/v1/completions": "completion",
        "/v1/embeddings": "embedding",
        "/v1/moderations": "moderation",
    }
    for path, kind in kinds.items():
        app.router.add_post(path, partial(_handle, kind=kind))
    app.router.add_get("/v1/models", _models)
    app.router.add_get("/v1/models/{model:.+}", _models)
    add_control_routes(app)
    app.on_shutdown.append(_hang_up)
    app.cleanup_ctx.append(_lifetime)
    return app
