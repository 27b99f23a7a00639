"""What an answer consists of, streamed or plain: its length, its text and the usage it reports. Pure."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import orjson

from services.emulator.ask import Ask
from services.emulator.script import Script
from services.emulator.text import pieces_between, text_of, tokens_for_bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's answer. `tokens` of text in each choice; `hidden` reasoning tokens beside them."""

    ask: Ask
    script: Script
    response_id: str
    created: int
    tokens: int
    reasoning: int
    hidden: int
    finish_reason: str

    @property
    def text(self) -> str:
        """The whole text of one choice (inside its tool call or refusal, if that is how it answers)."""
        return text_of(self.script.text, self.tokens)

    @property
    def shown_text(self) -> str:
        """Shown reasoning, if any, and then the text: what one choice sends in all."""
        return text_of(self.script.text, self.reasoning) + self.text

    @property
    def calls_tool(self) -> bool:
        return self.ask.kind == "chat" and (self.script.tool_calls != "none" or self.script.function_call)

    @property
    def logprobs(self) -> bool:
        return self.script.logprobs or self.ask.logprobs

    @property
    def reports_usage(self) -> bool:
        mode = self.script.usage.partition(":")[0]
        if mode in ("normal", "less", "more"):
            return self.ask.include_usage or not self.ask.stream
        return mode != "none"


def plan(ask: Ask, script: Script, *, response_id: str, created: int) -> Answer:
    """How long the answer gets: the script's length, cut at the request's limit unless told to ignore it."""
    wanted = max(script.tokens, tokens_for_bytes(script.text, script.long_line_bytes))
    hidden, reasoning = script.reasoning_tokens, script.reasoning_content
    limit = None if script.ignore_max_tokens else ask.limit_tokens
    cut = False
    if limit is not None:
        # Reasoning comes first and counts against the limit, as with OpenAI's own models.
        cut = hidden + reasoning + wanted > limit
        hidden = min(hidden, limit)
        reasoning = min(reasoning, limit - hidden)
        wanted = min(wanted, limit - hidden - reasoning)
    finish = "length" if cut else "stop"
    if not cut and ask.kind == "chat":
        finish = (
            "tool_calls"
            if script.tool_calls != "none"
            else "function_call"
            if script.function_call
            else finish
        )
    return Answer(ask, script, response_id, created, wanted, reasoning, hidden, finish)


def usage_of(answer: Answer) -> dict[str, Any]:
    """The usage the emulator reports, the script's `less` or `more` included."""
    ask, script = answer.ask, answer.script
    prompt = script.prompt_tokens or ask.prompt_tokens
    each = answer.tokens + answer.reasoning + answer.hidden + script.audio_output_tokens
    completion = each * ask.candidates
    mode, _, number = script.usage.partition(":")
    if mode == "less":
        completion = max(0, completion - int(number))
    elif mode == "more":
        completion += int(number)
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if ask.kind == "chat":
        usage["prompt_tokens_details"] = {
            "cached_tokens": min(script.cached_tokens, prompt),
            "audio_tokens": min(script.audio_input_tokens, prompt),
        }
        if script.cache_write_tokens:
            usage["prompt_tokens_details"]["cache_write_tokens"] = min(script.cache_write_tokens, prompt)
        usage["completion_tokens_details"] = {
            "reasoning_tokens": min((answer.hidden + answer.reasoning) * ask.candidates, completion),
            "audio_tokens": min(script.audio_output_tokens * ask.candidates, completion),
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        }
    return usage


def logprobs_of(pieces: list[str]) -> dict[str, Any]:
    """Made-up log probabilities in OpenAI's chat shape."""
    content = [
        {"token": piece, "logprob": -0.125, "bytes": list(piece.encode()), "top_logprobs": []}
        for piece in pieces
    ]
    return {"content": content, "refusal": None}


def arguments_of(text: str) -> str:
    """The tool call's arguments: JSON that holds the text. Its wrapping is not counted as tokens."""
    return '{"text":' + orjson.dumps(text).decode() + "}"


def first_chunk_tokens(answer: Answer) -> int:
    """Tokens in the first chunk with content: more than usual when it must be a long line."""
    needed = tokens_for_bytes(answer.script.text, answer.script.long_line_bytes)
    return max(1, min(answer.tokens, max(answer.script.chunk_tokens, needed)))


def cuts(answer: Answer) -> list[tuple[int, list[str]]]:
    """The answer cut into chunks: (tokens, pieces) of each."""
    first = first_chunk_tokens(answer)
    step, kind = answer.script.chunk_tokens, answer.script.text
    places = [0, *range(first, answer.tokens, step), answer.tokens] if answer.tokens else [0]
    return [(end - start, pieces_between(kind, start, end)) for start, end in pairwise(places)]
