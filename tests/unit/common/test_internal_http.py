"""Internal addresses need the internal credential; errors have the API's shape."""

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from services.common.errors import InsufficientQuota, RateLimited
from services.common.internal_http import add_health_routes, bearer, require_credential, translate_errors
from services.common.metrics import new_registry
from services.common.settings import Secret


async def _client(ready: bool = True) -> TestClient[web.Request, web.Application]:
    credential = Secret("let me in")
    app = web.Application(middlewares=[require_credential(credential), translate_errors])

    async def checks() -> dict[str, bool]:
        return {"store": ready}

    async def refuse(request: web.Request) -> web.Response:
        raise RateLimited(retry_after_ms=1_500) if "rate" in request.query else InsufficientQuota()

    async def fail(_request: web.Request) -> web.Response:
        raise RuntimeError("secret detail")

    add_health_routes(app, new_registry(), checks)
    app.router.add_get("/refuse", refuse)
    app.router.add_get("/fail", fail)
    client = TestClient(TestServer(app))
    await client.start_server()
    return client


async def test_without_the_credential_only_health_and_metrics_answer() -> None:
    client = await _client()
    async with client:
        for path, status in [("/healthz", 200), ("/readyz", 200), ("/metrics", 200), ("/refuse", 401)]:
            assert (await client.get(path)).status == status
        wrong = await client.get("/refuse", headers={"Authorization": "Bearer l\u00e9t me in"})
        assert wrong.status == 401


async def test_a_service_that_cannot_serve_is_not_ready() -> None:
    client = await _client(ready=False)
    async with client:
        answer = await client.get("/readyz")
        assert answer.status == 503
        assert await answer.json() == {"ready": False, "checks": {"store": False}}


async def test_errors_have_all_four_keys_and_tell_no_secret() -> None:
    client = await _client()
    headers = bearer(Secret("let me in"))
    async with client:
        answer = await client.get("/refuse", headers=headers)
        assert answer.status == 429
        assert set((await answer.json())["error"]) == {"message", "type", "param", "code"}
        limited = await client.get("/refuse?rate=1", headers=headers)
        assert limited.headers["Retry-After"] == "2"
        failed = await client.get("/fail", headers=headers)
        assert failed.status == 500
        assert "secret detail" not in await failed.text()
