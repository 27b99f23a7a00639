"""A JSON value as compact text, for counting what a model is shown of it: never longer than any way to
spell the same value in a request body, at any depth."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any


def compact_json(value: Any) -> str:
    """The value's JSON without blanks; anything that is not a JSON value is left out."""
    pieces: list[str] = []
    # A stack instead of recursion: a body may nest deeper than Python may recurse. Entries are values,
    # or text that is ready.
    pending: list[tuple[bool, Any]] = [(False, value)]
    while pending:
        ready, item = pending.pop()
        if ready:
            pieces.append(item)
        elif isinstance(item, dict):
            pending.append((True, "}"))
            for index, (key, inner) in reversed(list(enumerate(item.items()))):
                pending.append((False, inner))
                pending.append((True, f"{',' if index else ''}{_string(str(key))}:"))
            pending.append((True, "{"))
        elif isinstance(item, list):
            pending.append((True, "]"))
            for index, inner in reversed(list(enumerate(item))):
                pending.append((False, inner))
                if index:
                    pending.append((True, ","))
            pending.append((True, "["))
        else:
            pieces.append(scalar_json(item))
    return "".join(pieces)


def scalar_json(value: Any) -> str:
    """A string, number, boolean or null as JSON; numbers in their shortest spelling."""
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, int):
        # Python refuses to print integers of more than 4,300 digits.
        return str(value) if value.bit_length() < 10_000 else "9" * (value.bit_length() * 3 // 10)
    if isinstance(value, float):
        return _float(value)
    return ""


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _float(value: float) -> str:
    if not math.isfinite(value):
        return repr(value)
    plain = repr(value).removesuffix(".0")
    sign, digits, exponent = Decimal(plain).normalize().as_tuple()
    scientific = f"{'-' if sign else ''}{''.join(map(str, digits))}e{exponent}"
    return min(plain, scientific, key=len)
