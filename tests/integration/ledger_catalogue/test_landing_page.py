"""The page that people see first."""

from __future__ import annotations

import re

from aiohttp import web
from aiohttp.test_utils import TestClient

from tests.integration.ledger_catalogue.conftest import Api

Console = TestClient[web.Request, web.Application]


async def page(console: Console, path: str = "/", language: str = "en") -> str:
    async with console.get(path, headers={"Accept-Language": language}) as response:
        assert response.status == 200
        assert response.content_type == "text/html"
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        return await response.text()


async def test_it_shows_base_urls_and_prices_and_has_no_script(console: Console) -> None:
    html = await page(console)
    assert "https://api.example.com/v1" in html
    assert "https://direct.example.com/v1" in html
    assert "gpt-4o-mini" in html
    assert "$0.15" in html
    assert "128,000" in html
    assert "<script" not in html
    assert "style=" not in html
    assert not re.search(r"\son\w+=", html)


async def test_its_stylesheet_is_served_and_cached_for_good(console: Console) -> None:
    found = re.search(r'href="(/static/[^"]+\.css)"', await page(console))
    assert found
    async with console.get(found[1]) as response:
        assert response.status == 200
        assert response.content_type == "text/css"
        assert "immutable" in response.headers["Cache-Control"]


async def test_it_speaks_the_visitors_language(console: Console) -> None:
    assert '<html lang="zh-CN">' in await page(console, language="zh-CN,zh;q=0.9,en;q=0.5")
    assert '<html lang="en">' in await page(console, language="fr,en;q=0.5,zh;q=0.1")
    assert '<html lang="zh-CN">' in await page(console, "/?lang=zh", language="en")
    assert '<html lang="en">' in await page(console, "/?lang=xx", language="")


async def test_a_cheaper_price_shows_the_list_price_and_the_saving(console: Console, api: Api) -> None:
    await api.call("PUT", "/models/gpt-4/price", {"input": "15", "output": "45"})
    html = await page(console)
    row = html[html.index("<h4>gpt-4 ") :]
    row = row[: row.index("</article>")]
    # The least over the classes: never more than what is saved.
    assert "Save 25%" in row
    assert "$15.00" in row
    assert "<s>$30.00</s>" in row


async def test_a_coming_price_is_announced(console: Console, api: Api) -> None:
    await api.call(
        "PUT", "/models/gpt-4/price", {"input": "1", "output": "2", "starts_at": "2030-01-02T03:04:00Z"}
    )
    assert "From 2030-01-02 03:04 UTC: $1.00 / $2.00" in await page(console)


async def test_a_model_named_like_markup_is_text(console: Console, api: Api) -> None:
    await api.call("PUT", "/models/%3Cb%3Ex/price", {"input": "1", "output": "2"})
    html = await page(console)
    assert "&lt;b&gt;x" in html
    assert "<b>x" not in html


async def test_health_needs_no_credential(console: Console) -> None:
    async with console.get("/healthz") as response:
        assert response.status == 200
