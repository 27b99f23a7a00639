"""Writes the tables of docs/token-counts.md: `python -m tests.unit.counting.table`.

A test compares the document with `tables()`, so that it stays true.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from services.meter.counting.encodings import encoding
from tests.unit.counting.billed import DATA, Case, chat_cases, formula_images, reported_images

DOCUMENT = Path(__file__).parents[3] / "docs" / "token-counts.md"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
KINDS = {
    "text": "messages, text only",
    "functions": "messages with `functions`",
    "tools": "messages with `tools`",
    "image": "messages with an image",
}


def tables() -> str:
    rows = [
        "| what | source | cases | exact | above, at most | below, at most | held, most above the truth |"
    ]
    rows.append("|---|---|---|---|---|---|---|")
    for kind, title in KINDS.items():
        for source in ("cookbook", "hmarr", "pamelafox"):
            rows += _row(title, source, [c for c in chat_cases() if c.kind == kind and c.source == source])
    rows += _row("images, as reported by users", "community", reported_images())
    exact_formulas = sum(expected == counted for _, expected, counted in formula_images())
    formulas = f"{len(formula_images())} | {exact_formulas} | | | |"
    rows.append(f"| an image's tokens by the published formula | openai-docs, pamelafox | {formulas}")
    strings = f"{len(DATA['string_cases'])} | {_exact_strings()} | | | |"
    rows.append(f"| token ids of single strings | cookbook | {strings}")
    off = [f"| {c.id} | {c.billed_tokens} | {c.counted.tokens} | {c.off:+d} |" for c in all_cases() if c.off]
    header = [
        "",
        "Every case that is not exact:",
        "",
        "| case | billed | counted | off |",
        "|---|---|---|---|",
    ]
    return "\n".join(rows + (header + off if off else ["", "No case is off."]))


def all_cases() -> list[Case]:
    return chat_cases() + reported_images()


def document_tables() -> str:
    text = DOCUMENT.read_text("utf-8")
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()


def _row(title: str, source: str, cases: Iterable[Case]) -> list[str]:
    cases = list(cases)
    if not cases:
        return []
    offs = [case.off for case in cases]
    held = max(case.counted.hold_tokens - case.billed_tokens for case in cases)
    exact, above, below = offs.count(0), max(0, *offs, 0), max(0, *(-off for off in offs), 0)
    return [f"| {title} | {source} | {len(cases)} | {exact} | {above} | {below} | {held} |"]


def _exact_strings() -> int:
    return sum(encoding(c["encoding"]).encode_ordinary(c["text"]) == c["ids"] for c in DATA["string_cases"])


def write() -> None:
    text = DOCUMENT.read_text("utf-8")
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    DOCUMENT.write_text(f"{text[:start]}\n{tables()}\n{text[end:]}", "utf-8")


if __name__ == "__main__":
    write()
