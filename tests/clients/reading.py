"""Reading streams that fail."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

Item = TypeVar("Item")


def read_until_it_fails(items: Iterable[Item]) -> tuple[list[Item], Exception | None]:
    """What came, and what was raised then; None: it came to its end."""
    read: list[Item] = []
    try:
        for item in items:
            read.append(item)
    except Exception as error:
        return read, error
    return read, None
