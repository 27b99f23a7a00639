"""The console's pages. For now one: what this gateway is and what it costs."""

from __future__ import annotations

import hashlib
import time
from importlib import resources
from typing import Any, Final

import aiohttp_jinja2
import jinja2
from aiohttp import web

from services.common.contracts.catalogue import Catalogue
from services.ledger.catalogue import load_catalogue
from services.ledger.console.price_list import price_list, upcoming_price
from services.ledger.console.texts import TEXTS, choose_language
from services.ledger.context import LEDGER
from services.ledger.database import Database

# Pages have no script at all, and nothing from elsewhere.
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept-Language",
    "Cache-Control": "no-cache",
}


class RecentCatalogue:
    """The catalogue, read at most once in `AGE_S`: anybody may ask for the page, as often as they like."""

    AGE_S = 1.0

    def __init__(self) -> None:
        self._catalogue: Catalogue | None = None
        self._read_at = 0.0

    async def get(self, database: Database) -> Catalogue:
        now = time.monotonic()
        if self._catalogue is None or now - self._read_at >= self.AGE_S:
            self._read_at = now
            self._catalogue = await load_catalogue(database)
        return self._catalogue


RECENT_CATALOGUE = web.AppKey("recent_catalogue", RecentCatalogue)


def add_routes(app: web.Application) -> None:
    """Needs LEDGER in `app` when a request comes."""
    stylesheet = (resources.files("services.ledger.console") / "static" / "meterway.css").read_bytes()
    version = hashlib.sha256(stylesheet).hexdigest()[:12]
    environment = aiohttp_jinja2.setup(
        app,
        loader=jinja2.PackageLoader("services.ledger.console", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals["stylesheet_url"] = f"/static/meterway.{version}.css"

    async def get_stylesheet(_request: web.Request) -> web.Response:
        return web.Response(
            body=stylesheet,
            content_type="text/css",
            charset="utf-8",
            headers={
                "Cache-Control": "public, max-age=31536000, immutable",
                "X-Content-Type-Options": "nosniff",
            },
        )

    app[RECENT_CATALOGUE] = RecentCatalogue()
    app.router.add_get("/", get_landing)
    app.router.add_get(f"/static/meterway.{version}.css", get_stylesheet)


async def get_landing(request: web.Request) -> web.StreamResponse:
    ledger = request.app[LEDGER]
    language = choose_language(request.query.get("lang"), request.headers.get("Accept-Language", ""))
    models = (await request.app[RECENT_CATALOGUE].get(ledger.database)).models
    context: dict[str, Any] = {
        "t": TEXTS[language],
        "language": language,
        "base_urls": ledger.settings.public_base_urls,
        "sections": price_list(models),
        "upcoming_price": upcoming_price,
    }
    response = aiohttp_jinja2.render_template("landing.html", request, context)
    response.headers.update(_HEADERS)
    return response
