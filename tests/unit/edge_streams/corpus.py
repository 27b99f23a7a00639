"""Streams that really occur. Each is delivered whole, byte by byte, and split anywhere."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1741570283, "model": "gpt-4o"}
USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}


def chunk(choices: list[dict[str, Any]] | None = None, **more: Any) -> str:
    body = {**HEAD, **more}
    if choices is not None:
        body["choices"] = choices
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


def says(text: str, *, index: int = 0, finish: str | None = None, **more: Any) -> str:
    return chunk([{"index": index, "delta": {"content": text}, "finish_reason": finish}], **more)


def ends(reason: str = "stop", *, index: int = 0, **more: Any) -> str:
    return chunk([{"index": index, "delta": {}, "finish_reason": reason}], **more)


def delta(fields: dict[str, Any], *, index: int = 0, finish: str | None = None) -> str:
    return chunk([{"index": index, "delta": fields, "finish_reason": finish}])


def events(*datas: str, prefix: str = "data: ", line_end: str = "\n") -> bytes:
    return "".join(f"{prefix}{data}{line_end}{line_end}" for data in datas).encode()


class Case(NamedTuple):
    """`texts`: output by (choice, field). `usage`: prompt and completion tokens of the last report."""

    name: str
    stream: bytes
    texts: dict[tuple[int, str], str]
    usage: tuple[int, int] | None = None
    finished: bool = True
    done: bool = True
    error: str = ""
    stripped: int = 0
    garbage: int = 0


HELLO = {(0, "content"): "Hello, 世界 🌍!"}
HELLO_CHUNKS = (says("Hello, "), says("世界 🌍"), says("!"))
LONG = "x" * (600 * 1024)
USAGE_ONLY = chunk([], usage=USAGE)
TOOL = {"type": "function", "id": "call_1"}

CASES = [
    Case("utf-8 split across reads", events(*HELLO_CHUNKS, ends(), "[DONE]"), HELLO),
    Case("data without a space", events(*HELLO_CHUNKS, ends(), "[DONE]", prefix="data:"), HELLO),
    Case("CR line ends", events(*HELLO_CHUNKS, ends(), "[DONE]", line_end="\r"), HELLO),
    Case("CRLF line ends", events(*HELLO_CHUNKS, ends(), "[DONE]", line_end="\r\n"), HELLO),
    Case(
        "mixed line ends",
        events(HELLO_CHUNKS[0], line_end="\r")
        + events(HELLO_CHUNKS[1], line_end="\r\n")
        + events(HELLO_CHUNKS[2], ends(), "[DONE]"),
        HELLO,
    ),
    Case(
        "comments and keep-alives in odd shapes",
        b": OPENROUTER PROCESSING\n\n:\n\n"
        + events(": keepalive", *HELLO_CHUNKS)
        + b":x\ndata: "
        + ends().encode()
        + b"\n\n\n\n\n"
        + events("[DONE]"),
        HELLO,
        garbage=1,
    ),
    Case(
        "byte order mark, event, id and retry lines",
        b"\xef\xbb\xbfretry: 100\n\nid: 7\nevent: message\ndata: "
        + HELLO_CHUNKS[0].encode()
        + b"\n\nid: 8\n\nid\n"
        + events(*HELLO_CHUNKS[1:], ends(), "[DONE]"),
        HELLO,
    ),
    Case(
        "several data lines in an event",
        b'data: {"id":"chatcmpl-1",\ndata: "choices":[{"index":0,\ndata:"delta":{"content":"one"},\n'
        b'data: "finish_reason":"stop"}]}\n\n' + events("[DONE]"),
        {(0, "content"): "one"},
    ),
    Case(
        "U+2028, U+2029 and U+0085 in data",
        events(says("a\u2028b\u2029c\u0085d"), ends(), "[DONE]"),
        {(0, "content"): "a\u2028b\u2029c\u0085d"},
    ),
    Case(
        "first chunk with empty choices and filter results (Azure)",
        events(
            chunk([], prompt_filter_results=[{"prompt_index": 0, "content_filter_results": {}}]),
            *HELLO_CHUNKS,
            chunk([{"index": 0, "finish_reason": None, "content_filter_offsets": {"check_offset": 1}}]),
            ends(),
            "[DONE]",
        ),
        HELLO,
    ),
    Case(
        "usage-only last chunk",
        events(says("Hi", usage=None), ends(usage=None), USAGE_ONLY, "[DONE]"),
        {(0, "content"): "Hi"},
        usage=(9, 4),
        stripped=1,
    ),
    Case(
        "usage in the last content chunk (Gemini)",
        events(says("Hi"), says("!", finish="stop", usage=USAGE), "[DONE]"),
        {(0, "content"): "Hi!"},
        usage=(9, 4),
    ),
    Case(
        "usage with the finish reason",
        events(says("Hi"), ends(usage=USAGE), "[DONE]"),
        {(0, "content"): "Hi"},
        usage=(9, 4),
    ),
    Case(
        "usage-only chunk with non-empty choices",
        events(
            says("Hi"),
            ends(),
            chunk(
                [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}],
                usage=USAGE,
            ),
            "[DONE]",
        ),
        {(0, "content"): "Hi"},
        usage=(9, 4),
        stripped=1,
    ),
    Case(
        "usage twice",
        events(says("Hi", usage={"prompt_tokens": 9, "completion_tokens": 1}), ends(), USAGE_ONLY, "[DONE]"),
        {(0, "content"): "Hi"},
        usage=(9, 4),
        stripped=1,
    ),
    Case(
        "usage with every chunk, the first included (vLLM)",
        events(
            chunk(
                [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}],
                usage={"prompt_tokens": 9, "completion_tokens": 0},
            ),
            says("Hi", usage={"prompt_tokens": 9, "completion_tokens": 1}),
            ends(usage=USAGE),
            "[DONE]",
        ),
        {(0, "content"): "Hi"},
        usage=(9, 4),
    ),
    Case(
        "usage inside a choice (Moonshot)",
        events(
            says("Hi"),
            chunk([{"index": 0, "delta": {}, "finish_reason": "stop", "usage": USAGE}]),
            "[DONE]",
        ),
        {(0, "content"): "Hi"},
        usage=(9, 4),
    ),
    Case(
        "usage under x_groq",
        events(says("Hi"), ends(x_groq={"id": "req_1", "usage": USAGE}), "[DONE]"),
        {(0, "content"): "Hi"},
        usage=(9, 4),
    ),
    Case(
        "two choices with a finish reason each",
        events(
            says("a", index=0), says("b", index=1), ends(index=1), says("c", index=0), ends(index=0), "[DONE]"
        ),
        {(0, "content"): "ac", (1, "content"): "b"},
    ),
    Case(
        "two choices, one unfinished",
        events(says("a", index=0), says("b", index=1), ends(index=0)),
        {(0, "content"): "a", (1, "content"): "b"},
        finished=False,
        done=False,
    ),
    Case(
        "tool calls",
        events(
            delta({"tool_calls": [{"index": 0, **TOOL, "function": {"name": "look", "arguments": ""}}]}),
            delta({"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]}),
            delta({"tool_calls": [{"index": 1, **TOOL, "function": {"name": "two", "arguments": "{}"}}]}),
            delta({"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]}),
            ends("tool_calls"),
            "[DONE]",
        ),
        {(0, "tool:0"): 'look{"a":1}', (0, "tool:1"): "two{}"},
    ),
    Case(
        "tool call deltas without index",
        events(
            delta({"tool_calls": [{**TOOL, "function": {"name": "look", "arguments": '{"a"'}}]}),
            delta({"tool_calls": [{"function": {"arguments": ":1}"}}]}),
            ends("tool_calls"),
            "[DONE]",
        ),
        {(0, "tool:0"): 'look{"a":1}'},
    ),
    Case(
        "tool arguments as an object",
        events(
            delta({"tool_calls": [{**TOOL, "function": {"name": "look", "arguments": {"a": "b"}}}]}),
            ends("tool_calls"),
            "[DONE]",
        ),
        {(0, "tool:0"): "lookb"},
    ),
    Case(
        "legacy function call",
        events(
            delta({"function_call": {"name": "f", "arguments": "{"}}),
            delta({"function_call": {"arguments": "}"}}),
            ends(),
            "[DONE]",
        ),
        {(0, "function_call"): "f{}"},
    ),
    Case(
        "refusal",
        events(delta({"refusal": "No"}), delta({"refusal": "."}), ends(), "[DONE]"),
        {(0, "refusal"): "No."},
    ),
    Case(
        "logprobs",
        events(
            chunk(
                [
                    {
                        "index": 0,
                        "delta": {"content": "Hi"},
                        "logprobs": {"content": [{"token": "Hi", "logprob": -0.1, "bytes": [72, 105]}]},
                        "finish_reason": "stop",
                    }
                ]
            ),
            "[DONE]",
        ),
        {(0, "content"): "Hi"},
    ),
    Case(
        "reasoning_content, and reasoning under both names",
        events(
            delta({"reasoning_content": "Let me "}),
            delta({"reasoning_content": "think", "reasoning": "think"}),
            delta({"reasoning": "."}),
            says("42"),
            ends(),
            "[DONE]",
        ),
        {(0, "reasoning"): "Let me think.", (0, "content"): "42"},
    ),
    Case(
        "content as a list of parts (Mistral)",
        events(
            delta({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm. "}]}]}),
            says("42"),
            ends(),
            "[DONE]",
        ),
        {(0, "content"): "Hm. 42"},
    ),
    Case(
        "an audio transcript",
        events(delta({"audio": {"id": "a", "data": "AAAA", "transcript": "Hi"}}), ends(), "[DONE]"),
        {(0, "transcript"): "Hi"},
    ),
    Case(
        "legacy completions",
        events(
            chunk([{"index": 0, "text": "Hi", "finish_reason": None}]),
            chunk([{"index": 0, "text": "", "finish_reason": "stop"}]),
            "[DONE]",
        ),
        {(0, "text"): "Hi"},
    ),
    Case(
        "a surrogate pair torn in two",
        events(
            r'{"choices":[{"index":0,"delta":{"content":"\ud83c"}}]}',
            r'{"choices":[{"index":0,"delta":{"content":"\udf0d"},"finish_reason":"stop"}]}',
            "[DONE]",
        ),
        {(0, "content"): "\ud83c\udf0d"},
    ),
    Case(
        "a late chunk without delta, choices null, index null",
        events(
            says("Hi"),
            chunk([{"index": 0, "finish_reason": "stop"}]),
            '{"choices":null}',
            '{"choices":[{"index":null,"delta":null}]}',
            "{}",
            "[DONE]",
        ),
        {(0, "content"): "Hi"},
    ),
    Case(
        "error event after 200",
        events(says("Hi"), '{"error":{"message":"overloaded","type":"server_error","code":null}}', "[DONE]"),
        {(0, "content"): "Hi"},
        finished=False,
        error="overloaded",
    ),
    Case(
        "200, an error, then silence",
        events('{"error":{"message":"boom"}}'),
        {},
        finished=False,
        done=False,
        error="boom",
    ),
    Case(
        "event: error without an error key",
        b'event: error\ndata: {"message":"boom"}\n\n',
        {},
        finished=False,
        done=False,
        error="boom",
    ),
    Case(
        "an error object without an error key (vLLM)",
        events('{"object":"error","message":"boom","code":400}'),
        {},
        finished=False,
        done=False,
        error="boom",
    ),
    Case("close without [DONE]", events(*HELLO_CHUNKS, ends()), HELLO, done=False),
    Case(
        "close inside an event",
        events(*HELLO_CHUNKS) + b'data: {"id":"chatcmpl-1","cho',
        HELLO,
        finished=False,
        done=False,
    ),
    Case(
        "garbage between chunks", events("<html>", *HELLO_CHUNKS, "[1]", ends(), "[DONE]"), HELLO, garbage=2
    ),
]

LONG_LINE = Case("a line over 512 KiB", events(says(LONG), ends(), "[DONE]"), {(0, "content"): LONG})
