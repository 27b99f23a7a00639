"""Bodies of plain answers: chat, text completions, embeddings, moderations, models. Pure."""

import base64
import hashlib
import math
from array import array
from typing import Any, Final

import orjson

from services.emulator.answer import Answer, arguments_of, logprobs_of, usage_of
from services.emulator.ask import Ask, Refused
from services.emulator.text import pieces_between, text_of

MODELS: Final = (
    "gpt-4o", "gpt-4o-mini", "gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano", "o1", "o3", "o3-mini", "o4-mini",
    "gpt-3.5-turbo", "gpt-3.5-turbo-16k", "gpt-4", "gpt-4-32k", "gpt-4-1106-preview", "gpt-4-vision-preview",
    "gpt-3.5-turbo-instruct", "text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002",
    "omni-moderation-latest",
)  # fmt: skip
DIMENSIONS_MAX: Final = 3072
INPUTS_MAX: Final = 2048
_CATEGORIES: Final = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent",
    "self-harm", "self-harm/intent", "self-harm/instructions", "sexual", "sexual/minors",
    "violence", "violence/graphic",
)  # fmt: skip


def _message(answer: Answer) -> dict[str, Any]:
    script, text = answer.script, answer.text
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if answer.reasoning:
        message["reasoning_content"] = text_of(script.text, answer.reasoning)
    if answer.calls_tool:
        message["content"] = None
        arguments = arguments_of(text)
        # Cut at its limit, a call's arguments are torn JSON, as a model leaves them.
        function = {
            "name": answer.ask.tool_name,
            "arguments": arguments.removesuffix('"}') if answer.finish_reason == "length" else arguments,
        }
        if script.function_call:
            message["function_call"] = function
        else:
            call_id = f"call_{answer.response_id[-10:]}"
            message["tool_calls"] = [{"id": call_id, "type": "function", "function": function}]
    elif script.refusal:
        message["content"], message["refusal"] = None, text
    return message


def completion_body(answer: Answer) -> tuple[bytes, dict[str, Any] | None]:
    """(body, usage in it) of a chat or text completion."""
    ask = answer.ask
    body: dict[str, Any] = {
        "id": answer.response_id,
        "object": "chat.completion" if ask.kind == "chat" else "text_completion",
        "created": answer.created,
        "model": ask.model,
        "system_fingerprint": "fp_emulator",
    }
    choice: dict[str, Any] = {"logprobs": None, "finish_reason": answer.finish_reason}
    if ask.kind == "chat":
        choice["message"] = _message(answer)
        if answer.logprobs:
            choice["logprobs"] = logprobs_of(pieces_between(answer.script.text, 0, answer.tokens))
    else:
        choice["text"] = answer.text
    body["choices"] = [{"index": index, **choice} for index in range(ask.choices)]
    usage = usage_of(answer) if answer.reports_usage else None
    if usage is not None:
        body["usage"] = usage
    if answer.script.azure_first:
        body["prompt_filter_results"] = [{"prompt_index": 0, "content_filter_results": {}}]
    if answer.script.padding_bytes:
        body["x_padding"] = "x" * answer.script.padding_bytes
    return orjson.dumps(body), usage


def _vector(text: str, dimensions: int) -> list[float]:
    raw = array("h", hashlib.shake_128(text.encode(errors="replace")).digest(2 * dimensions))
    size = math.sqrt(sum(part * part for part in raw)) or 1.0
    return [part / size for part in raw]


def embedding_body(ask: Ask) -> tuple[bytes, dict[str, Any]]:
    """(body, usage) of embeddings: unit vectors that depend on the text alone. Raises Refused (400)."""
    value = ask.body["input"]
    inputs = value if isinstance(value, list) and not isinstance(value[0], int) else [value]
    dimensions = ask.body.get("dimensions", 3072 if "large" in ask.model else 1536)
    if type(dimensions) is not int or not 1 <= dimensions <= DIMENSIONS_MAX or len(inputs) > INPUTS_MAX:
        raise Refused(400, f"At most {INPUTS_MAX} inputs of at most {DIMENSIONS_MAX} dimensions.")
    data = []
    for index, one in enumerate(inputs):
        vector: Any = _vector(str(one), dimensions)
        if ask.body.get("encoding_format") == "base64":
            vector = base64.b64encode(array("f", vector).tobytes()).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    usage = {"prompt_tokens": ask.prompt_tokens, "total_tokens": ask.prompt_tokens}
    return orjson.dumps({"object": "list", "data": data, "model": ask.model, "usage": usage}), usage


def moderation_body(ask: Ask, response_id: str) -> bytes:
    """A verdict for each input: nothing is ever flagged."""
    value = ask.body["input"]
    result = {
        "flagged": False,
        "categories": dict.fromkeys(_CATEGORIES, False),
        "category_scores": dict.fromkeys(_CATEGORIES, 0.0001),
        "category_applied_input_types": {name: ["text"] for name in _CATEGORIES},
    }
    several = isinstance(value, list) and all(isinstance(one, str) for one in value)
    count = len(value) if several else 1
    return orjson.dumps({"id": response_id, "model": ask.model, "results": [result] * count})


def model_body(model: str) -> dict[str, Any]:
    """One entry of the model list."""
    return {"id": model, "object": "model", "created": 1_715_367_049, "owned_by": "emulator"}
