"""tiktoken encodings from the bundled rank files: lazy, checked by sha256, safe to use from any thread."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import threading
from binascii import a2b_base64
from collections.abc import Iterable
from pathlib import Path
from types import FunctionType
from typing import Any, Literal

import tiktoken

EncodingName = Literal["cl100k_base", "o200k_base", "p50k_base", "r50k_base"]
ENCODING_NAMES: tuple[EncodingName, ...] = ("cl100k_base", "o200k_base", "p50k_base", "r50k_base")

_RANKS_FOLDER = Path(__file__).parent / "ranks"
_loaded: dict[str, tiktoken.Encoding] = {}
_locks = {name: threading.Lock() for name in ENCODING_NAMES}


class RanksDamaged(RuntimeError):
    """A bundled rank file is not the one tiktoken expects. Reinstall the package."""


def encoding(name: EncodingName) -> tiktoken.Encoding:
    """The encoding; the first call for a name reads its file (about 0.2 s)."""
    found = _loaded.get(name)
    if found is not None:
        return found
    with _locks[name]:
        if name not in _loaded:
            _loaded[name] = _build(name)
        return _loaded[name]


def preload(names: Iterable[EncodingName] = ("cl100k_base", "o200k_base")) -> None:
    """Load ahead, so that no request waits for a file."""
    for name in names:
        encoding(name)


def _build(name: EncodingName) -> tiktoken.Encoding:
    definitions = importlib.import_module("tiktoken_ext.openai_public")
    # tiktoken's own constructor keeps patterns and special tokens identical to tiktoken's; a copy with
    # our loader in its globals leaves tiktoken itself, which would download, untouched.
    own_globals = {**vars(definitions), "load_tiktoken_bpe": _load_bundled}
    construct: Any = FunctionType(getattr(definitions, name).__code__, own_globals)
    return tiktoken.Encoding(**construct())


def _load_bundled(address: str, expected_hash: str) -> dict[bytes, int]:
    file = _RANKS_FOLDER / (address.rsplit("/", 1)[-1] + ".gz")
    contents = gzip.decompress(file.read_bytes())
    if hashlib.sha256(contents).hexdigest() != expected_hash:
        raise RanksDamaged(f"{file.name} does not have the sha256 {expected_hash}. Reinstall the package.")
    fields = contents.split()
    return dict(zip(map(a2b_base64, fields[::2]), map(int, fields[1::2]), strict=True))
