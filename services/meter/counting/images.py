"""Tokens of an image by each model's formula.

`tokens(size, detail)` is the estimate, `tokens_max(size, detail)` is what is held: at least what any
version of the formula gives. A size of None (a remote address, a header that can't be read) counts
as the worst image there is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

Size = tuple[int, int]  # width, height in pixels


class ImageFormula(Protocol):
    """`worst_tokens`: no image costs more, whatever its size and detail."""

    @property
    def worst_tokens(self) -> int: ...

    def tokens(self, size: Size | None, detail: str) -> int: ...

    def tokens_max(self, size: Size | None, detail: str) -> int: ...


@dataclass(frozen=True)
class Tiles:
    """GPT-4o and its like: `base`, and `tile` for each 512 px square after the image was fitted into
    2048 x 2048 and then to a short side of 768; `low` costs the base alone, `auto` is high."""

    base: int
    tile: int

    @property
    def worst_tokens(self) -> int:
        return self.base + 8 * self.tile

    def tokens(self, size: Size | None, detail: str) -> int:
        if detail == "low":
            return self.base
        return self.base + self.tile * (8 if size is None else tile_count(size))

    def tokens_max(self, size: Size | None, detail: str) -> int:
        return self.tokens(size, detail)


@dataclass(frozen=True)
class Patches:
    """GPT-4.1-mini and its like: 32 px patches, at most `patches_max`, times a factor; billed counts
    are one token above the rounded-up product."""

    factor_percent: int
    patches_max: int = 1536

    @property
    def worst_tokens(self) -> int:
        return self._priced(self.patches_max)

    def tokens(self, size: Size | None, detail: str) -> int:  # noqa: ARG002 - detail doesn't matter here
        return self._priced(self.patches_max if size is None else patch_count(size, self.patches_max))

    def tokens_max(self, size: Size | None, detail: str) -> int:
        # Reports of what scaled-down images cost differ by a few patches; unscaled ones are sure.
        if size is None or _whole_patches(size) > self.patches_max:
            return self.worst_tokens
        return self.tokens(size, detail)

    def _priced(self, patches: int) -> int:
        return -(-patches * self.factor_percent // 100) + 1


@dataclass(frozen=True)
class Unsettled:
    """Models whose formula isn't sure: estimated by `formula`; held by unscaled patches, at most `worst`."""

    formula: Tiles | Patches
    worst: int
    factor_percent: int = 100

    @property
    def worst_tokens(self) -> int:
        return self.worst

    def tokens(self, size: Size | None, detail: str) -> int:
        return self.formula.tokens(size, detail)

    def tokens_max(self, size: Size | None, detail: str) -> int:
        if size is None:
            return self.worst
        patches = -(-_whole_patches(size) * self.factor_percent // 100) + 1
        return max(self.formula.tokens(size, detail), min(self.worst, max(patches, _TILED_WORST)))


@dataclass(frozen=True)
class Flat:
    """Models of other makers: `estimate` where nothing better is known, `worst` is held."""

    estimate: int
    worst: int

    @property
    def worst_tokens(self) -> int:
        return self.worst

    def tokens(self, size: Size | None, detail: str) -> int:  # noqa: ARG002
        return self.estimate if size is None else min(self.worst, max(1, size[0] * size[1] // 750))

    def tokens_max(self, size: Size | None, detail: str) -> int:  # noqa: ARG002
        return self.worst


_TILED_WORST = 85 + 8 * 170
GPT_5_NEWER_IMAGES = Unsettled(Patches(factor_percent=100, patches_max=2500), worst=10_001)
GPT_5_NEWER_MINI_IMAGES = Unsettled(Patches(factor_percent=162), worst=16_201, factor_percent=162)
GPT_5_NEWER_NANO_IMAGES = Unsettled(Patches(factor_percent=246), worst=24_601, factor_percent=246)
CLAUDE_IMAGES = Flat(estimate=1_600, worst=5_000)
GEMINI_IMAGES = Flat(estimate=1_120, worst=8_256)
# An unknown name may be any model behind a rename; the dearest known is GPT-4o-mini.
ANY_IMAGES = Flat(estimate=1_445, worst=2_833 + 8 * 5_667)


def tile_count(size: Size) -> int:
    """512 px squares of the image after both fittings; sides are rounded to whole pixels, as billed."""
    width, height = max(1, size[0]), max(1, size[1])
    if max(width, height) > 2048:
        width, height = _scaled(width, height, 2048, max(width, height))
    if min(width, height) > 768:
        width, height = _scaled(width, height, 768, min(width, height))
    return -(-width // 512) * -(-height // 512)


def patch_count(size: Size, patches_max: int = 1536) -> int:
    """32 px patches of the image, scaled down to a whole number of patches when there are too many."""
    width, height = max(1, size[0]), max(1, size[1])
    patches = _whole_patches(size)
    if patches <= patches_max:
        return patches
    shrink = math.sqrt(32 * 32 * patches_max / (width * height))
    columns, rows = width * shrink / 32, height * shrink / 32
    shrink *= min(max(1, math.floor(columns)) / columns, max(1, math.floor(rows)) / rows)
    # Rounded first: 33 patches that come out as 33.0000001 are 33.
    fitted_columns = math.ceil(round(width * shrink / 32, 6))
    fitted_rows = math.ceil(round(height * shrink / 32, 6))
    return min(patches_max, max(1, fitted_columns) * max(1, fitted_rows))


def _whole_patches(size: Size) -> int:
    return -(-max(1, size[0]) // 32) * -(-max(1, size[1]) // 32)


def _scaled(width: int, height: int, numerator: int, denominator: int) -> Size:
    def scale(side: int) -> int:
        return max(1, (2 * side * numerator + denominator) // (2 * denominator))

    return scale(width), scale(height)
