"""Counting as the charging calls ask for it: bodies and texts in, tokens out."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import msgspec

from services.common.contracts.catalogue import Model
from services.common.contracts.charging import Counted, CountText, InputFacts
from services.common.errors import BadRequest
from services.meter.counting import Counter, InputCount, input_tokens_bound, whole_context_tokens
from services.meter.metrics import MeterMetrics
from services.meter.sessions import InputTokens

_decoder = msgspec.json.Decoder()


class CountingDesk:
    """Counting methods raise `counting.CountingOverloaded` when too much waits already."""

    def __init__(self, counter: Counter, metrics: MeterMetrics) -> None:
        self._counter = counter
        self._metrics = metrics

    def bound(self, model: Model, facts: InputFacts) -> InputTokens:
        """From the input's size alone."""
        tokens = input_tokens_bound(model.id, facts, context_tokens=model.context_tokens)
        return InputTokens(tokens=tokens, hold_tokens=tokens, exact=False)

    async def count_input(
        self, endpoint: str, model_id: str, model: Model | None, body: bytes
    ) -> InputTokens:
        """Raises BadRequest when the body is not JSON."""
        started = perf_counter()
        try:
            request = _decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest("The request body is not valid JSON. Please correct it.") from error
        count = await self._count(endpoint, model_id, request, len(body))
        self._note("input", count.tokens, started)
        hold_tokens = count.hold_tokens
        if count.whole_context:
            context_tokens = model.context_tokens if model is not None else None
            hold_tokens = max(hold_tokens, whole_context_tokens(context_tokens))
        return InputTokens(tokens=count.tokens, hold_tokens=hold_tokens, exact=count.exact)

    async def count_texts(self, call: CountText) -> Counted:
        started = perf_counter()
        found = [await self._counter.count_prefix(call.model, text, final=call.final) for text in call.texts]
        self._note("text", sum(tokens for tokens, _chars in found), started)
        return Counted(
            tokens=tuple(tokens for tokens, _chars in found),
            consumed_chars=tuple(chars for _tokens, chars in found),
        )

    async def _count(self, endpoint: str, model_id: str, request: Any, body_bytes: int) -> InputCount:
        if endpoint.startswith("chat"):
            return await self._counter.count_chat_input(model_id, request, body_bytes=body_bytes)
        if endpoint.startswith("completions"):
            return await self._counter.count_prompt_input(model_id, request, body_bytes=body_bytes)
        return await self._counter.count_embedding_input(model_id, request, body_bytes=body_bytes)

    def _note(self, what: str, tokens: int, started: float) -> None:
        self._metrics.counted_tokens[what] += tokens
        self._metrics.count_seconds.observe(perf_counter() - started)
