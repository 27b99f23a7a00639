"""Random chat requests for property tests: plausible ones, odd ones, and garbage."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.unit.counting.billed import png_address

MODELS = (
    "gpt-4o", "gpt-4o-mini", "gpt-4.1-mini", "gpt-4", "gpt-3.5-turbo-0301", "o3", "gpt-5.4", "gpt-oss-120b",
    "text-davinci-003", "claude-sonnet-4-5", "gemini-2.5-pro", "unknown",
)  # fmt: skip
TEXT = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            "",
            "hello",
            "\U0001f600" * 5,
            "\u4f60\u597d\u4e16\u754c",
            '\u0001\u0002\n\t"\\',
            "!" * 9,
            "?",
            "\u202e",
        ]
    ),
)
NUMBERS = st.one_of(
    st.integers(-(10**20), 10**20),
    st.integers(0, 9),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([1e15, 1e11, 1e-3, 0.1, 1e22, -5e-7, 1e100]),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXT)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=12,
)


def _optional(required: dict[str, Any], optional: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(required, optional=optional)


SCHEMAS: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.just({}),
        _optional(
            {},
            {
                "type": st.sampled_from(
                    ["string", "integer", "number", "boolean", "null", "array", "object"]
                ),
                "enum": st.lists(st.one_of(NUMBERS, TEXT, st.integers(0, 9)), max_size=30),
                "description": TEXT,
                "const": SCALARS,
                "default": JSON,
            },
        ),
    ),
    lambda inner: st.one_of(
        _optional(
            {"type": st.just("object"), "properties": st.dictionaries(TEXT, inner, max_size=4)},
            {"description": TEXT, "required": st.lists(TEXT, max_size=2)},
        ),
        _optional({"type": st.just("array")}, {"items": inner, "description": TEXT}),
        st.fixed_dictionaries({"anyOf": st.lists(inner, max_size=4)}),
    ),
    max_leaves=14,
)
FUNCTIONS = _optional({"name": TEXT}, {"description": TEXT, "parameters": SCHEMAS})
TOOLS = st.one_of(
    st.fixed_dictionaries({"type": st.just("function"), "function": FUNCTIONS}),
    st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": TEXT})}),
    _optional({"type": TEXT}, {"custom": JSON}),
    JSON,
)
IMAGES = st.builds(
    lambda address, rest: {"type": "image_url", "image_url": {"url": address, **rest}},
    st.one_of(st.builds(png_address, st.integers(1, 9000), st.integers(1, 9000)), TEXT),
    st.fixed_dictionaries({}, optional={"detail": st.sampled_from(["low", "high", "auto", "original", ""])}),
)
PARTS = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}),
    IMAGES,
    st.fixed_dictionaries(
        {"type": st.just("input_audio"), "input_audio": st.fixed_dictionaries({"data": TEXT, "format": TEXT})}
    ),
    st.fixed_dictionaries({"type": st.just("file"), "file": st.fixed_dictionaries({"file_data": TEXT})}),
    st.fixed_dictionaries({"type": TEXT, "x": JSON}),
    JSON,
)
CALLS = _optional({}, {"name": TEXT, "arguments": TEXT})
MESSAGES = st.one_of(
    _optional(
        {"role": st.sampled_from(["system", "user", "assistant", "tool", "function", "developer"])},
        {
            "content": st.one_of(TEXT, st.lists(PARTS, max_size=4), st.none()),
            "name": TEXT,
            "function_call": CALLS,
            "tool_calls": st.lists(st.one_of(st.fixed_dictionaries({"function": CALLS}), JSON), max_size=3),
            "refusal": TEXT,
            "reasoning_content": TEXT,
        },
    ),
    JSON,
)
CHOICES = st.one_of(
    st.sampled_from(["auto", "none", "required"]),
    st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": TEXT})}),
    JSON,
)
CHATS = _optional(
    {"messages": st.one_of(st.lists(MESSAGES, max_size=6), JSON)},
    {
        "functions": st.lists(st.one_of(FUNCTIONS, JSON), max_size=4),
        "tools": st.lists(TOOLS, max_size=4),
        "tool_choice": CHOICES,
        "function_call": CHOICES,
        "response_format": st.one_of(st.fixed_dictionaries({"json_schema": SCHEMAS}), JSON),
    },
)
