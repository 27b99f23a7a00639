"""Rules of the repository that no linter knows."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "services").rglob("*.py"))
TEXTS = [
    path
    for pattern in ("*.py", "*.md", "*.txt", "*.in", "*.toml", "*.yml", "*.yaml", "*.json", "*.sql", "*.lua")
    for path in ROOT.rglob(pattern)
    if not {".venv", "node_modules", ".git", ".meterway", ".hypothesis"} & set(path.relative_to(ROOT).parts)
]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_can_be_read_in_one_sitting(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 330
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 75, f"{node.name} is too long"


def test_only_the_meter_speaks_redis_and_only_the_ledger_postgres() -> None:
    drivers = {"redis": "meter", "hiredis": "meter", "asyncpg": "ledger"}
    for path in MODULES:
        for name in re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            if name in drivers:
                assert path.relative_to(ROOT).parts[1] == drivers[name], f"{path} imports {name}"


def test_no_file_names_a_package_registry_or_a_path_of_one_machine() -> None:
    forbidden = re.compile(
        "|".join(["pypi" + r"\.org", "npmjs" + r"\.(org|com)", "/wo" + "rk/", "/ro" + "ot/"])
    )
    for path in TEXTS:
        found = forbidden.search(path.read_text(encoding="utf-8", errors="replace"))
        assert not found, f"{path.relative_to(ROOT)}: {found and found.group()}"


def test_there_is_no_module_named_utils() -> None:
    assert not [path for path in MODULES if path.stem in {"utils", "helpers", "misc"}]
