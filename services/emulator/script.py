"""What one request asks the emulator to do: parsed from a directive, a header or the server's defaults."""

import dataclasses
import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import orjson

TOKENS_MAX: Final = 10_000_000
DIRECTIVE: Final = re.compile(r"\[\[emulate\s+([^\[\]]*)\]\]")
_PAIR: Final = re.compile(r"[^\s;]+")

# Each fault: whether it takes a number (no, may, must), and the words that may follow.
FAULTS: Final[dict[str, tuple[str, frozenset[str]]]] = {
    "status": ("must", frozenset()),
    "garbage": ("no", frozenset()),
    "hang_before_headers": ("no", frozenset()),
    "hang_after": ("must", frozenset()),
    "close_before": ("no", frozenset()),
    "close_after": ("must", frozenset()),
    "end_after": ("must", frozenset()),
    "error_event_after": ("must", frozenset({"silence"})),
    "truncate_plain": ("may", frozenset()),
    "slow_headers": ("must", frozenset()),
}


class ScriptError(ValueError):
    """A directive, header or default that names an unknown field, value or fault."""


def _field(default: Any, meaning: str, *, choices: str = "") -> Any:
    return dataclasses.field(
        default=default,
        metadata={"meaning": meaning, "choices": tuple(choices.split("|")) if choices else ()},
    )


@dataclass(frozen=True, slots=True)
class Script:
    """How one request is answered. Each field's meaning stands in its metadata and in docs/emulator.md."""

    tokens: int = _field(64, "Length of each choice's answer, before the request's own limit")
    ignore_max_tokens: bool = _field(False, "Answer `tokens` tokens whatever limit the request sets")
    text: str = _field("ascii", "The text", choices="ascii|chinese|emoji|u2028")
    delay_ms: float = _field(0.0, "Wait between two chunks with content")
    first_delay_ms: float = _field(
        0.0, "Wait before the first chunk (its headers are sent), or a plain answer"
    )
    chunk_tokens: int = _field(1, "Tokens in each chunk")
    long_line_bytes: int = _field(
        0, "The first chunk carries at least N bytes of text; `tokens` grows to fit"
    )
    padding_bytes: int = _field(0, "An unknown field of N bytes in the first chunk or the plain body")
    write_bytes: int = _field(0, "Cut every write after N bytes, through UTF-8 and events (0: whole writes)")
    write_gap_ms: float = _field(0.0, "Wait between the parts of a cut write")
    usage: str = _field(
        "normal",
        "Which usage is reported: as OpenAI does, never, in two chunks, beside the last text, beside a "
        "choice, or with N completion tokens too few or too many; `twice`, `in_last_content_chunk` and "
        "`with_choices` are sent unasked",
        choices="normal|none|twice|in_last_content_chunk|with_choices|less:N|more:N",
    )
    prompt_tokens: int = _field(0, "Report this many prompt tokens (0: the emulator's own count)")
    cached_tokens: int = _field(0, "Prompt tokens reported as read from the cache")
    cache_write_tokens: int = _field(0, "Prompt tokens reported as written to the cache")
    reasoning_tokens: int = _field(0, "Hidden reasoning: completion tokens without text")
    reasoning_content: int = _field(0, "Shown reasoning: N tokens in `reasoning_content` before the answer")
    audio_input_tokens: int = _field(0, "Prompt tokens reported as audio")
    audio_output_tokens: int = _field(0, "Completion tokens reported as audio, added to the text's")
    newline: str = _field("lf", "Line ends of the events", choices="lf|crlf|cr")
    no_space: bool = _field(False, "`data:` without a space")
    multi_line: bool = _field(False, "Each event's JSON spread over two `data:` lines")
    comments: int = _field(0, "The comment `: OPENROUTER PROCESSING` before every Nth event")
    keepalive: int = _field(0, "The odd event `data: : keepalive` before every Nth event")
    azure_first: bool = _field(False, "A first chunk with empty `choices` and `prompt_filter_results`")
    late_chunk: bool = _field(False, "After the finish, a chunk whose choice has no `delta`")
    in_turn: bool = _field(False, "With n > 1, one choice after the other instead of interleaved")
    tool_calls: str = _field(
        "none",
        "Answer with a tool call, its deltas with or without `index`",
        choices="none|indexed|unindexed",
    )
    function_call: bool = _field(False, "Answer with the older `function_call`")
    refusal: bool = _field(False, "Answer with a `refusal` instead of content")
    logprobs: bool = _field(False, "Add `logprobs` although the request did not ask")
    encoding: str = _field(
        "identity", "Content encoding of the answer", choices="identity|gzip|br|zstd|deflate"
    )
    no_done: bool = _field(False, "Leave out `data: [DONE]`")
    fault: str = _field("", "One fault of the table below, as `name`, `name:N` or `name:N:word`")


@dataclass(frozen=True, slots=True)
class Fault:
    """A parsed fault; `number` is a status, a count of content chunks, of body bytes or of milliseconds."""

    name: str
    number: int = 0
    retry_after_seconds: int | None = None
    word: str = ""


@cache
def parse_fault(text: str) -> Fault | None:
    """The fault that `text` names, None for the empty text. Raises ScriptError."""
    if not text:
        return None
    name, *rest = text.split(":")
    if name not in FAULTS:
        raise ScriptError(f"Unknown fault {name!r}. Use one of: {', '.join(FAULTS)}.")
    number_rule, words = FAULTS[name]
    numbers = [int(part) for part in rest if part.isascii() and part.isdigit() and len(part) < 12]
    others = [part for part in rest if not (part.isascii() and part.isdigit() and len(part) < 12)]
    most = {"no": 0, "may": 1, "must": 1}[number_rule] + (name == "status")
    if (
        len(numbers) > most
        or (number_rule == "must" and not numbers)
        or any(part not in words for part in others)
    ):
        raise ScriptError(f"Fault {text!r} has wrong arguments. docs/emulator.md lists them.")
    if name == "status" and not 400 <= numbers[0] <= 599:
        raise ScriptError("The fault status takes a code from 400 to 599.")
    return Fault(
        name=name,
        number=numbers[0] if numbers else 0,
        retry_after_seconds=numbers[1] if len(numbers) > 1 else None,
        word=others[0] if others else "",
    )


_DEFAULT: Final = Script()
_FIELDS: Final = {field.name: field for field in dataclasses.fields(Script)}


def _convert(name: str, value: Any) -> bool | int | float | str:
    default = getattr(_DEFAULT, name)
    text = str(value).strip()
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "": True, "false": False, "0": False}[text.lower()]
        if isinstance(default, int):
            # A bare `comments` means "every event".
            number = int(text) if text else 1
            if not 0 <= number <= TOKENS_MAX * 10:
                raise ValueError
            return number
        if isinstance(default, float):
            wait_ms = float(text)
            if not 0 <= wait_ms <= 3_600_000:
                raise ValueError
            return wait_ms
    except (ValueError, KeyError):
        raise ScriptError(f"{name} can't be {text[:40]!r}. docs/emulator.md says what it takes.") from None
    _check_choice(name, text)
    return text


def _check_choice(name: str, text: str) -> None:
    if name == "fault":
        parse_fault(text)
        return
    choices: tuple[str, ...] = _FIELDS[name].metadata["choices"]
    head, separator, number = text.partition(":")
    wanted = f"{head}:N" if separator and number.isascii() and number.isdigit() else text
    if wanted not in choices or wanted.endswith(":N") != bool(separator):
        raise ScriptError(f"{name} must be one of {', '.join(choices)}, not {text[:40]!r}.")


def apply(script: Script, fields: dict[str, Any]) -> Script:
    """`script` with `fields` changed. Raises ScriptError for an unknown field or a value it can't take."""
    changes: dict[str, Any] = {}
    for name, value in fields.items():
        if name not in _FIELDS:
            raise ScriptError(f"Unknown field {name[:40]!r}. docs/emulator.md lists the fields.")
        changes[name] = _convert(name, value)
    if changes.get("chunk_tokens") == 0:
        raise ScriptError("chunk_tokens must be at least 1.")
    if changes.get("tokens", 0) > TOKENS_MAX:
        raise ScriptError(f"tokens must be at most {TOKENS_MAX}.")
    return dataclasses.replace(script, **changes)


def parse_pairs(text: str) -> dict[str, Any]:
    """Fields from `name=value` pairs parted by spaces or semicolons, or from a JSON object."""
    text = text.strip()
    if text.startswith("{"):
        try:
            fields = orjson.loads(text)
        except orjson.JSONDecodeError:
            raise ScriptError("x-emulate begins with { but is not JSON.") from None
        assert isinstance(fields, dict)
        return fields
    pairs = (part.partition("=") for part in _PAIR.findall(text))
    return {name: value for name, _, value in pairs}


def script_for(defaults: Script, *, header: str | None, message: str) -> Script:
    """Server defaults, changed by the header `x-emulate`, changed by a directive in the last message."""
    script = defaults
    if header:
        script = apply(script, parse_pairs(header))
    if "[[emulate" in message:
        for directive in DIRECTIVE.findall(message):
            script = apply(script, parse_pairs(directive))
    return script
