"""docs/api.md names every route, error code and header that there is, and no other."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from aiohttp import hdrs, web

from services.common import errors
from services.common.errors import MeterwayError
from services.edge.cors import EXPOSED
from services.edge.errors_http import MethodNotAllowed
from services.edge.request_body import BodyTimeout, UndecodableBody
from services.edge.routes import add_routes

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
# Not the API's: what the meter tells of its own inner calls.
SOURCES = (*sorted((ROOT / "services/edge").rglob("*.py")), *sorted((ROOT / "services/meter").rglob("*.py")))


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def first_cells(title: str) -> list[list[str]]:
    """The names in each row's first cell, and all behind it."""
    rows = [line for line in section(title).splitlines() if line.startswith("| `")]
    return [line.strip("| ").split(" | ") for line in rows]


def names_in(title: str) -> list[str]:
    return [name for cells in first_cells(title) for name in re.findall(r"`([^`]+)`", cells[0])]


def registered_routes() -> set[str]:
    app = web.Application()
    add_routes(app)
    found = set()
    for route in app.router.routes():
        if route.resource is not None and route.method not in (hdrs.METH_HEAD, hdrs.METH_ANY):
            path = route.resource.canonical
            found.add(f"{route.method} {path}")
    return found


def error_classes() -> Iterator[type[MeterwayError]]:
    yield from (MethodNotAllowed, BodyTimeout, UndecodableBody)
    for found in vars(errors).values():
        if isinstance(found, type) and issubclass(found, MeterwayError):
            yield found


def literal_codes() -> set[str]:
    """Codes that the edge and the meter write down: `code="..."`, and `code = "..."` of a class."""
    codes = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "code":
                value: ast.expr | None = node.value
            elif isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [
                "code"
            ]:
                value = node.value
            else:
                continue
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                codes.add(value.value)
    return codes


def test_every_route_is_on_the_page_and_no_other() -> None:
    assert set(names_in("Routes")) == registered_routes()


def test_every_error_code_is_on_the_page_with_its_status() -> None:
    status_of = {
        code: int(cells[1]) for cells in first_cells("Errors") for code in re.findall(r"`([^`]+)`", cells[0])
    }
    for error in error_classes():
        assert status_of.get(error.code) == error.status, error.code
    assert literal_codes() - status_of.keys() == set()
    known = literal_codes() | {error.code for error in error_classes()} | {"session_ended", "session_running"}
    assert status_of.keys() - known == set()


def test_every_header_that_a_page_may_read_is_on_the_page() -> None:
    ours = {name for name in EXPOSED.split(", ") if not name.startswith("openai-")}
    assert ours == {name for name in names_in("Reply headers") if name != "Allow"}
