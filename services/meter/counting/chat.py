"""Counting a chat completion's input: messages, names, tools, images.

Per message 3 tokens (and 1 for a name), 3 to prime the reply; functions and tools as the namespace of
`tool_format`. Every function here is total: any JSON value counts something, nothing raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.meter.counting.content_parts import count_part
from services.meter.counting.json_text import compact_json
from services.meter.counting.models import counting_for
from services.meter.counting.tally import InputCount, Tally, TextCounter
from services.meter.counting.text import count_tokens
from services.meter.counting.tool_format import FUNCTIONS, TOOLS, format_namespace

_DEFINITIONS_TOKENS = 9
_SYSTEM_WITH_DEFINITIONS_TOKENS = -4
_CALL_TOKENS = 3
_FUNCTION_ROLE_TOKENS = -2
_CHOICE_NONE_TOKENS = 1
_CHOICE_FUNCTION_TOKENS = 4
_CHOICE_TOOL_TOKENS = 7
# Held beyond the namespace, whose spelling upstream isn't published.
_FUNCTION_MARGIN_TOKENS = 6
_CHOICE_MARGIN_TOKENS = 8
_TOOL_MESSAGE_MARGIN_TOKENS = 4
_SCHEMA_TOKENS = 16


def count_chat_input(model: str, request: Any, *, count: TextCounter = count_tokens) -> InputCount:
    """Input tokens of a chat completion request (the parsed JSON body, whatever it is)."""
    tally = Tally(counting_for(model), count)
    rules = tally.rules
    if not rules.known_template:
        tally.estimated()
    tally.add(rules.reply_tokens, rules.reply_tokens + rules.template_margin_tokens)
    body: Mapping[str, Any] = request if isinstance(request, dict) else {}
    messages = body.get("messages")
    messages = messages if isinstance(messages, list) else []
    has_definitions = _count_definitions(tally, body)
    system_seen = False
    for message in messages:
        is_system = isinstance(message, dict) and message.get("role") in ("system", "developer")
        pad = has_definitions and is_system and not system_seen
        system_seen = system_seen or is_system
        _count_message(tally, message, pad=pad)
    if has_definitions and system_seen:
        tally.add(_SYSTEM_WITH_DEFINITIONS_TOKENS)
    _count_response_format(tally, body.get("response_format"))
    return tally.result()


def _count_message(tally: Tally, message: Any, *, pad: bool) -> None:
    rules = tally.rules
    tally.add(rules.message_tokens, rules.message_tokens + rules.message_margin_tokens)
    if not isinstance(message, dict):
        tally.estimated()
        return
    role = message.get("role")
    if isinstance(role, str):
        tally.text(role)
    if role == "function":
        tally.add(_FUNCTION_ROLE_TOKENS)
    elif role == "tool":
        tally.estimated()
        tally.add(0, _TOOL_MESSAGE_MARGIN_TOKENS)
    _count_content(tally, message.get("content"), pad=pad)
    name = message.get("name")
    if isinstance(name, str) and name:
        tally.text(name)
        tally.add(rules.name_tokens)
    for key in ("refusal", "reasoning_content", "reasoning"):
        extra = message.get(key)
        if isinstance(extra, str) and extra:
            tally.estimated()
            tally.text(extra)
    _count_calls(tally, message)
    if isinstance(message.get("audio"), dict):
        tally.out_of_sight()


def _count_content(tally: Tally, content: Any, *, pad: bool) -> None:
    if isinstance(content, str):
        # A system message is set apart from the definitions behind it by a line's end.
        padded = pad and content and not content.endswith("\n")
        tally.text(content + "\n" if padded else content)
    elif isinstance(content, list):
        tally.add(0, 1 if pad else 0)
        for part in content:
            count_part(tally, part)


def _count_calls(tally: Tally, message: dict[str, Any]) -> None:
    function_call = message.get("function_call")
    if isinstance(function_call, dict):
        _count_call(tally, function_call)
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else []:
        tally.estimated()
        for key in ("function", "custom"):
            inner = call.get(key) if isinstance(call, dict) else None
            if isinstance(inner, dict):
                _count_call(tally, inner)


def _count_call(tally: Tally, call: dict[str, Any]) -> None:
    tally.add(_CALL_TOKENS)
    for key in ("name", "arguments", "input"):
        text = call.get(key)
        if isinstance(text, str):
            tally.text(text)


def _count_definitions(tally: Tally, body: Mapping[str, Any]) -> bool:
    functions = _named(body.get("functions"))
    tools = body.get("tools")
    tools = [tool for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    tool_functions = _named([tool.get("function") for tool in tools])
    other_tools = [tool for tool in tools if isinstance(tool.get("type"), str) and tool["type"] != "function"]
    if not functions and not tools:
        return False
    tally.estimated()
    tally.add(0, tally.rules.tools_margin_tokens)
    for definitions, dialect in ((functions, FUNCTIONS), (tool_functions, TOOLS)):
        if definitions:
            _count_namespace(tally, definitions, format_namespace(definitions, dialect))
    for tool in other_tools:
        tally.text(compact_json(tool))
        tally.add(0, _FUNCTION_MARGIN_TOKENS)
    _count_choice(tally, body.get("function_call"), _CHOICE_FUNCTION_TOKENS)
    _count_choice(tally, body.get("tool_choice"), _CHOICE_TOOL_TOKENS)
    return bool(functions or tool_functions)


def _count_namespace(tally: Tally, definitions: list[dict[str, Any]], namespace: str) -> None:
    # Constraints, defaults and formats may be shown too: the whole schema's JSON has them all.
    schemas = tally.text_tokens_max(compact_json(definitions))
    tokens = tally.count(tally.rules.encoding, namespace)
    # Of a tokenizer that isn't known only the bytes bound anything, and other makers show the JSON.
    tally.add(tokens, max(tokens, schemas) if tally.rules.known_tokenizer else schemas)
    tally.add(_DEFINITIONS_TOKENS, _DEFINITIONS_TOKENS + _FUNCTION_MARGIN_TOKENS * len(definitions))


def _count_choice(tally: Tally, choice: Any, named_tokens: int) -> None:
    if choice == "none":
        tally.add(_CHOICE_NONE_TOKENS)
    elif isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else choice.get("name")
        if isinstance(name, str):
            tally.add(named_tokens)
            tally.text(name)
        else:
            tally.add(0, tally.text_tokens_max(compact_json(choice)))
    elif isinstance(choice, str) and choice != "auto":
        tally.add(0, _CHOICE_MARGIN_TOKENS)


def _count_response_format(tally: Tally, response_format: Any) -> None:
    schema = response_format.get("json_schema") if isinstance(response_format, dict) else None
    if isinstance(schema, dict):
        tally.estimated()
        tally.text(compact_json(schema))
        tally.add(_SCHEMA_TOKENS, 2 * _SCHEMA_TOKENS)


def _named(definitions: Any) -> list[dict[str, Any]]:
    """Those with a name; upstreams refuse the others."""
    found = [one for one in definitions if isinstance(one, dict)] if isinstance(definitions, list) else []
    return [one for one in found if isinstance(one.get("name"), str) and one["name"]]
