"""The Lua scripts, read once: their sources and the hashes that EVALSHA names them by."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files

_COMMENT = re.compile(r"^\s*--.*$", re.MULTILINE)
VERBS = (
    "open",
    "extend",
    "settle",
    "release",
    "grant",
    "recall",
    "configure",
    "sweep",
    "init_epoch",
    "audit",
    "quarantine",
)


@dataclass(frozen=True, slots=True)
class Script:
    verb: str
    source: str
    sha: str


def load_scripts() -> dict[str, Script]:
    """Every verb's script, by verb."""
    folder = files("services.meter.lua")
    common = (folder / "common.lua").read_text(encoding="utf-8")
    scripts = {}
    for verb in VERBS:
        body = (folder / f"{verb}.lua").read_text(encoding="utf-8")
        source = _COMMENT.sub("", f"{common}\n{body}")
        sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        scripts[verb] = Script(verb, source, sha)
    return scripts
