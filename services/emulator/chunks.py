"""The JSON of a stream's events, in order, for chat and for text completions. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from services.emulator.answer import Answer, cuts, logprobs_of, usage_of
from services.emulator.text import pieces_between


@dataclass(frozen=True, slots=True)
class Event:
    """One event. Only `content` events carry text; `lead` comes before all of them, `tail` after."""

    part: Literal["lead", "content", "tail"]
    payload: bytes
    choice: int = 0
    tokens: int = 0
    text: str = ""
    usage: dict[str, Any] | None = None


class _Writer:
    """Joins the parts of a chunk that are the same in the whole stream with the few that change."""

    def __init__(self, answer: Answer) -> None:
        ask = answer.ask
        self.chat = ask.kind == "chat"
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        head = {"id": answer.response_id, "object": kind, "created": answer.created, "model": ask.model}
        self._head = orjson.dumps(head)[:-1] + b',"system_fingerprint":"fp_emulator","choices":'
        # OpenAI writes a null usage on every chunk but the last, when usage was asked for.
        self._end = b',"usage":null}' if ask.include_usage and answer.reports_usage else b"}"
        self._plain_text = not answer.logprobs and self.chat

    def chunk(self, choices: bytes, usage: dict[str, Any] | None = None, *, extra: bytes = b"") -> bytes:
        end = self._end if usage is None else b',"usage":' + orjson.dumps(usage) + b"}"
        return self._head + choices + extra + end

    def choice(
        self, index: int, delta: dict[str, Any], *, finish: str | None = None, logprobs: Any = None
    ) -> bytes:
        entry: dict[str, Any] = {"index": index}
        if self.chat:
            entry["delta"] = delta
        else:
            entry["text"] = delta.get("content", "")
        entry |= {"logprobs": logprobs, "finish_reason": finish}
        return b"[" + orjson.dumps(entry) + b"]"

    def text(self, index: int, text: str) -> bytes:
        """The commonest chunk, without a dict."""
        return (
            b'%b[{"index":%d,"delta":{"content":%b},"logprobs":null,"finish_reason":null}]%b'
            % (self._head, index, orjson.dumps(text), self._end)
            if self.chat
            else self.chunk(self.choice(index, {"content": text}))
        )


def _call(answer: Answer, arguments: str, *, first: bool = False) -> dict[str, Any]:
    function = {"arguments": arguments}
    if first:
        function = {"name": answer.ask.tool_name, **function}
    if answer.script.function_call:
        return {"function_call": function}
    call: dict[str, Any] = {"index": 0} if answer.script.tool_calls == "indexed" else {}
    if first:
        call |= {"id": f"call_{answer.response_id[-10:]}", "type": "function"}
    return {"tool_calls": [call | {"function": function}]}


def _content(answer: Answer) -> Iterator[tuple[int, str, dict[str, Any] | None, list[str]]]:
    """(tokens, text, delta or None for plain content, pieces) of each content chunk of one choice."""
    script = answer.script
    if answer.reasoning and answer.ask.kind == "chat":
        for place in range(0, answer.reasoning, script.chunk_tokens):
            pieces = pieces_between(script.text, place, min(place + script.chunk_tokens, answer.reasoning))
            text = "".join(pieces)
            yield len(pieces), text, {"reasoning_content": text}, []
    parts = cuts(answer)
    for place, (tokens, pieces) in enumerate(parts):
        text = "".join(pieces)
        if answer.calls_tool:
            escaped = orjson.dumps(text).decode()[1:-1]
            opening = '{"text":"' if place == 0 else ""
            closing = '"}' if place == len(parts) - 1 and answer.finish_reason != "length" else ""
            yield tokens, text, _call(answer, opening + escaped + closing, first=place == 0), []
        elif script.refusal and answer.ask.kind == "chat":
            yield tokens, text, {"refusal": text}, []
        elif answer.logprobs and answer.ask.kind == "chat":
            yield tokens, text, {"content": text}, pieces
        else:
            yield tokens, text, None, []


def _ordered(answer: Answer) -> Iterator[tuple[int, bool, tuple[int, str, dict[str, Any] | None, list[str]]]]:
    """(choice, whether it is that choice's last, content) in the order the chunks are sent."""
    choices = range(answer.ask.choices)
    if len(choices) == 1 or answer.script.in_turn:
        for choice in choices:
            held = None
            for item in _content(answer):
                if held is not None:
                    yield choice, False, held
                held = item
            if held is not None:
                yield choice, True, held
        return
    held_rows = None
    for row in zip(*(_content(answer) for _ in choices), strict=True):
        if held_rows is not None:
            yield from ((choice, False, item) for choice, item in enumerate(held_rows))
        held_rows = row
    if held_rows is not None:
        yield from ((choice, True, item) for choice, item in enumerate(held_rows))


def _lead(answer: Answer, writer: _Writer) -> Iterator[Event]:
    script = answer.script
    if script.azure_first:
        filtered = {name: {"filtered": False, "severity": "safe"} for name in ("hate", "violence")}
        results = orjson.dumps([{"prompt_index": 0, "content_filter_results": filtered}])
        yield Event("lead", writer.chunk(b"[]", extra=b',"prompt_filter_results":' + results))
    extra = b',"x_padding":"' + b"x" * script.padding_bytes + b'"' if script.padding_bytes else b""
    if writer.chat:
        for choice in range(answer.ask.choices):
            delta = {"role": "assistant", "content": None if answer.calls_tool else "", "refusal": None}
            yield Event("lead", writer.chunk(writer.choice(choice, delta), extra=extra))
            extra = b""


def events(answer: Answer) -> Iterator[Event]:
    """All events of the stream but `[DONE]`."""
    writer = _Writer(answer)
    script = answer.script
    usage = usage_of(answer) if answer.reports_usage else None
    beside_text = script.usage == "in_last_content_chunk"
    last_choice = answer.ask.choices - 1
    usage_sent = False
    yield from _lead(answer, writer)
    for choice, is_last, (tokens, text, delta, pieces) in _ordered(answer):
        if beside_text and is_last and choice == last_choice:
            entry = writer.choice(choice, delta or {"content": text}, finish=answer.finish_reason)
            yield Event("content", writer.chunk(entry, usage), choice, tokens, text, usage)
            usage_sent = True
        elif delta is None:
            yield Event("content", writer.text(choice, text), choice, tokens, text)
        else:
            entry = writer.choice(choice, delta, logprobs=logprobs_of(pieces) if pieces else None)
            yield Event("content", writer.chunk(entry), choice, tokens, text)
    for choice in range(answer.ask.choices):
        if not (usage_sent and choice == last_choice):
            yield Event("tail", writer.chunk(writer.choice(choice, {}, finish=answer.finish_reason)))
    if script.late_chunk:
        late = [{"index": 0, "finish_reason": None, "content_filter_offsets": {"check_offset": 0}}]
        yield Event("tail", writer.chunk(orjson.dumps(late)))
    if usage is not None and not usage_sent:
        choices = writer.choice(0, {}) if script.usage == "with_choices" else b"[]"
        for _ in range(2 if script.usage == "twice" else 1):
            yield Event("tail", writer.chunk(choices, usage), usage=usage)
