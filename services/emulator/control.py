"""Routes that tests and operators use: the log, what is open now, faults for all requests, health."""

from typing import Any

import orjson
from aiohttp import web

from services.emulator.script import ScriptError, apply
from services.emulator.state import EMULATOR


def json_answer(document: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(document), content_type="application/json")


async def _read_log(request: web.Request) -> web.Response:
    since = request.query.get("since", "0")
    if not (since.isascii() and since.isdigit()):
        return json_answer({"error": "since must be the seq of the last row you have."}, 400)
    rows = request.app[EMULATOR].log.since(int(since))
    return web.Response(body=rows, content_type="application/json")


async def _clear_log(request: web.Request) -> web.Response:
    request.app[EMULATOR].log.clear()
    return web.Response(status=204)


async def _read_totals(request: web.Request) -> web.Response:
    emulator = request.app[EMULATOR]
    return json_answer({**emulator.log.totals, "open": len(emulator.open)})


async def _read_open(request: web.Request) -> web.Response:
    rows = request.app[EMULATOR].open.values()
    answers = [
        {"request_id": row.request_id, "model": row.model, "stream": row.stream, "tokens": row.tokens}
        for row in rows
    ]
    return json_answer({"open": len(answers), "answers": answers})


def _faults(request: web.Request) -> dict[str, Any]:
    emulator = request.app[EMULATOR]
    start, now = emulator.start_defaults, emulator.defaults
    names = start.__dataclass_fields__
    changed = {name: getattr(now, name) for name in names if getattr(now, name) != getattr(start, name)}
    return {**changed, "times": emulator.defaults_left}


async def _read_faults(request: web.Request) -> web.Response:
    return json_answer(_faults(request))


async def _set_faults(request: web.Request) -> web.Response:
    emulator = request.app[EMULATOR]
    try:
        fields = orjson.loads(await request.read())
        if not isinstance(fields, dict):
            raise ScriptError("Send a JSON object of fields.")
        times = fields.pop("times", None)
        if times is not None and (type(times) is not int or times < 0):
            raise ScriptError("times must be a whole number of requests.")
        emulator.defaults = apply(emulator.start_defaults, fields)
    except (ScriptError, orjson.JSONDecodeError) as error:
        return json_answer({"error": str(error)}, 400)
    emulator.defaults_left = times
    return json_answer(_faults(request))


async def _clear_faults(request: web.Request) -> web.Response:
    emulator = request.app[EMULATOR]
    emulator.defaults, emulator.defaults_left = emulator.start_defaults, None
    return web.Response(status=204)


async def _health(request: web.Request) -> web.Response:  # noqa: ARG001
    return json_answer({"status": "ok"})


def add_control_routes(app: web.Application) -> None:
    """Add `/emulator/...` and `/healthz`. They need no key."""
    router = app.router
    router.add_get("/emulator/log", _read_log)
    router.add_delete("/emulator/log", _clear_log)
    router.add_get("/emulator/totals", _read_totals)
    router.add_get("/emulator/open", _read_open)
    router.add_get("/emulator/faults", _read_faults)
    router.add_put("/emulator/faults", _set_faults)
    router.add_delete("/emulator/faults", _clear_faults)
    router.add_get("/healthz", _health)
