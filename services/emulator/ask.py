"""Read a request's body as OpenAI would: what is asked for, or a 400 in OpenAI's shape."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson

Kind = Literal["chat", "completion", "embedding", "moderation"]
CountText = Callable[[str], int]

CHOICES_MAX: Final = 128
_TYPES: Final = {
    401: ("invalid_request_error", "invalid_api_key"),
    402: ("insufficient_quota", "insufficient_quota"),
    403: ("permission_error", "access_denied"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    503: ("server_error", "overloaded"),
}


def error_body(status: int, message: str, *, param: str | None = None, code: str | None = None) -> bytes:
    """An error in OpenAI's shape; type and code follow the status."""
    kind, usual_code = _TYPES.get(
        status, ("invalid_request_error", None) if status < 500 else ("server_error", None)
    )
    error = {"message": message, "type": kind, "param": param, "code": code or usual_code}
    return orjson.dumps({"error": error})


class Refused(Exception):
    """A request that gets an error answer: HTTP status and body in OpenAI's shape."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(status, message, param=param, code=code)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What one request wants. `prompt_tokens` is the emulator's own count, `last_text` carries directives."""

    kind: Kind
    model: str
    stream: bool
    include_usage: bool
    choices: int
    candidates: int
    limit_tokens: int | None
    prompt_tokens: int
    messages_count: int
    last_text: str
    logprobs: bool
    tool_name: str
    body: dict[str, Any]


def tokens_of_text(text: str) -> int:
    """A quarter of the UTF-8 bytes, rounded up: near what a tokenizer finds in prose."""
    return (len(text.encode(errors="replace")) + 3) // 4


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = (part for part in content if isinstance(part, dict))
        return "\n".join(part["text"] for part in parts if isinstance(part.get("text"), str))
    return ""


def _images(content: Any) -> int:
    if not isinstance(content, list):
        return 0
    found = 0
    for part in content:
        if isinstance(part, dict) and part.get("type") == "image_url":
            image = part.get("image_url")
            low = isinstance(image, dict) and image.get("detail") == "low"
            found += 85 if low else 765
    return found


def count_messages(body: dict[str, Any], count_text: CountText) -> int:
    """3 tokens for each message, 1 for a name, 3 to prime the answer; images 85 or 765; tools as JSON + 9."""
    tokens = 3
    for message in body["messages"]:
        tokens += 3 + count_text(str(message.get("role", ""))) + count_text(_text_of(message.get("content")))
        tokens += _images(message.get("content"))
        if isinstance(message.get("name"), str):
            tokens += 1 + count_text(message["name"])
        for field in ("tool_calls", "function_call"):
            if message.get(field):
                tokens += count_text(orjson.dumps(message[field]).decode())
    for field in ("tools", "functions"):
        if body.get(field):
            tokens += 9 + count_text(orjson.dumps(body[field]).decode())
    return tokens


def _count_input(value: Any, name: str, count_text: CountText) -> tuple[int, int, str]:
    """(tokens, items, last text) of a prompt or input: a text, texts, tokens, or lists of tokens."""
    if isinstance(value, str):
        return count_text(value), 1, value
    if isinstance(value, list) and value:
        if all(type(part) is int for part in value):
            return len(value), 1, ""
        if all(isinstance(part, str) for part in value):
            return sum(map(count_text, value)), len(value), value[-1]
        if all(isinstance(part, list) and all(type(token) is int for token in part) for part in value):
            return sum(map(len, value)), len(value), ""
        if all(isinstance(part, dict) for part in value):
            return count_text(_text_of(value)), len(value), _text_of(value)
    raise Refused(400, f"{name} must be a text, a list of texts, or tokens.", param=name)


def _whole(body: dict[str, Any], name: str, *, most: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= most:
        raise Refused(400, f"{name} must be a whole number from 1 to {most}.", param=name)
    return value


def _check_messages(body: dict[str, Any]) -> str:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise Refused(400, "messages must be a list with at least one message.", param="messages")
    users = (one for one in reversed(messages) if one.get("role") == "user")
    last: dict[str, Any] = next(users, {})
    return _text_of(last.get("content"))


def _tool_name(body: dict[str, Any]) -> str:
    for entry in (*(body.get("tools") or ()), *(body.get("functions") or ())):
        function = entry.get("function", entry) if isinstance(entry, dict) else {}
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            return str(function["name"])
    return "look_up"


def parse(kind: Kind, raw: bytes, *, count_text: CountText) -> Ask:
    """What the body `raw` asks for. Raises Refused (400)."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise Refused(400, "The body is not JSON.") from None
    if not isinstance(body, dict):
        raise Refused(400, "The body must be a JSON object.")
    model = body.get("model", "omni-moderation-latest" if kind == "moderation" else None)
    if not isinstance(model, str) or not model:
        raise Refused(400, "you must provide a model parameter", param="model")
    stream = body.get("stream") or False
    if not isinstance(stream, bool):
        raise Refused(400, "stream must be true or false.", param="stream")
    options = body.get("stream_options") or {}
    if kind == "chat":
        last_text = _check_messages(body)
        prompt_tokens, messages_count = count_messages(body, count_text), len(body["messages"])
    else:
        field = "prompt" if kind == "completion" else "input"
        prompt_tokens, messages_count, last_text = _count_input(body.get(field), field, count_text)
    limits = [_whole(body, name, most=10**7) for name in ("max_tokens", "max_completion_tokens")]
    choices = _whole(body, "n", most=CHOICES_MAX) or 1
    best_of = _whole(body, "best_of", most=CHOICES_MAX) if kind == "completion" else None
    return Ask(
        kind=kind,
        model=model,
        stream=stream and kind in ("chat", "completion"),
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        choices=choices,
        candidates=max(best_of or 1, choices),
        limit_tokens=min((limit for limit in limits if limit is not None), default=None),
        prompt_tokens=prompt_tokens,
        messages_count=messages_count,
        last_text=last_text,
        logprobs=body.get("logprobs") is True,
        tool_name=_tool_name(body),
        body=body,
    )
