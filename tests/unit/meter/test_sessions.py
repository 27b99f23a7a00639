"""What a session asks of the script, and what its edge is told."""

import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.contracts.catalogue import Model, PriceVersion
from services.common.contracts.charging import InputFacts, Open
from services.common.contracts.lending import KeyLimits, KeySnapshot
from services.common.ids import AccountId, EdgeId, KeyHash, KeyId, new_session_id
from services.common.money import PriceVector, TokenCounts, cost_nanos, nanos_for_tokens
from services.meter.quota_answers import Due, Held
from services.meter.sessions import (
    HoldAsk,
    InputTokens,
    address_is_allowed,
    admitted,
    orphan_record,
    output_bound_tokens,
    plan_hold,
    rate_limit_state,
)

PRICE = PriceVector(input=2_500_000, cached_input=1_250_000, output=10_000_000)
MODEL = Model("gpt-4o", "openai", "chat", (PriceVersion(3, 0, PRICE),), 128_000, 16_384)
KEY = KeySnapshot(
    KeyHash("0" * 64), KeyId("key_1"), AccountId("acct_1"), 7, 1, "active", "active", 1_000_000, KeyLimits()
)
BOUND = InputTokens(tokens=900, hold_tokens=900, exact=False)


def chat(**changes: object) -> Open:
    call = Open(
        new_session_id(),
        1,
        EdgeId("edge-a"),
        KEY.key_hash,
        "chat.completions",
        "gpt-4o",
        False,
        InputFacts(800),
    )
    return msgspec.structs.replace(call, **changes)


def ask_for(
    call: Open, *, model: Model = MODEL, key: KeySnapshot = KEY, counted: InputTokens | None = None
) -> HoldAsk:
    return plan_hold(
        call,
        key,
        model,
        model.prices[0],
        bound=BOUND,
        counted=counted,
        slice_tokens=2_048,
        unknown_tokens=16_384,
    )


@pytest.mark.parametrize(
    ("call", "mode", "bound", "least"),
    [
        (chat(), "capped", 16_384, 1_024),
        (chat(choices=3), "capped", 49_152, 3_072),
        (chat(output_tokens_max=70), "explicit", 70, 70),
        (chat(output_tokens_max=70, choices=4), "explicit", 280, 280),
        (chat(output_tokens_max=200_000), "explicit", 200_000, 200_000),
        (chat(output_tokens_max=0), "explicit", 0, 0),
        (chat(stream=True), "stream", 16_384, 16),
        (chat(stream=True, output_tokens_max=5), "stream", 5, 5),
    ],
)
def test_the_request_decides_how_its_output_is_held(call: Open, mode: str, bound: int, least: int) -> None:
    ask = ask_for(call)
    assert (ask.mode, ask.output_bound_tokens, ask.tokens_min) == (mode, bound, least)


def test_a_stream_of_a_model_with_hidden_reasoning_is_held_like_a_plain_call() -> None:
    thinker = msgspec.structs.replace(MODEL, hidden_reasoning=True)
    assert ask_for(chat(stream=True), model=thinker).mode == "capped"
    assert ask_for(chat(stream=True, output_tokens_max=9), model=thinker).mode == "explicit"


def test_a_model_without_a_known_maximum_is_bounded_by_the_setting_or_its_context() -> None:
    unknown = Model("m", "x", "chat", MODEL.prices)
    assert output_bound_tokens(chat(), unknown, unknown_tokens=16_384) == 16_384
    small = Model("m", "x", "chat", MODEL.prices, context_tokens=4_096)
    assert output_bound_tokens(chat(), small, unknown_tokens=16_384) == 4_096


def test_an_embedding_has_no_output() -> None:
    embedder = Model("e", "x", "embedding", MODEL.prices)
    ask = ask_for(chat(endpoint="embeddings"), model=embedder)
    assert (ask.mode, ask.output_bound_tokens) == ("explicit", 0)


@given(
    prices=st.lists(st.integers(0, 700_000_000), min_size=7, max_size=7),
    counts=st.lists(st.integers(0, 2_000_000), min_size=7, max_size=7),
    ratio_ppm=st.integers(0, 5_000_000),
)
def test_a_hold_is_never_below_the_cost(prices: list[int], counts: list[int], ratio_ppm: int) -> None:
    price, tokens = PriceVector(*prices), TokenCounts(*counts)
    model = Model("m", "x", "chat", (PriceVersion(1, 0, price),))
    counted = InputTokens(tokens=tokens.input_total, hold_tokens=tokens.input_total, exact=True)
    ask = ask_for(
        chat(output_tokens_max=tokens.output_total),
        model=model,
        key=msgspec.structs.replace(KEY, ratio_ppm=ratio_ppm),
        counted=counted,
    )
    held = ask.input_exact_nanos + nanos_for_tokens(ask.output_bound_tokens, ask.out_picos)
    assert held >= min(cost_nanos(tokens, price, ratio_ppm), ask.input_exact_nanos + 2**53)


def held(tokens: int, *, available: int = 10**12, record: bytes | None = None) -> Held:
    return Held(5, 1_000, tokens, False, available, 1, 1, 1, 1_000, None, None, record)


@pytest.mark.parametrize(
    ("call", "granted", "written"),
    [
        (chat(), 16_384, None),
        (chat(), 2_000, 2_000),
        (chat(choices=2), 4_000, 2_000),
        (chat(output_tokens_max=50), 50, None),
        (chat(stream=True), 2_048, None),
    ],
)
def test_only_a_cap_of_ours_is_written_into_the_upstream_request(
    call: Open, granted: int, written: int | None
) -> None:
    reply = admitted(call, KEY, MODEL, held(granted), ask_for(call).record, lease_ms=60_000)
    assert reply is not None
    assert reply.upstream_output_tokens_max == written


def test_a_cap_is_always_written_where_the_models_maximum_is_unknown() -> None:
    unknown = Model("m", "x", "chat", MODEL.prices)
    call = chat()
    reply = admitted(call, KEY, unknown, held(16_384), ask_for(call, model=unknown).record, lease_ms=1)
    assert reply is not None
    assert reply.upstream_output_tokens_max == 16_384


def test_a_repeated_open_is_answered_with_the_price_of_the_first() -> None:
    call = chat(output_tokens_max=10)
    record = ask_for(call, counted=InputTokens(tokens=5, hold_tokens=6, exact=True)).record
    newer = msgspec.structs.replace(MODEL, prices=(*MODEL.prices, PriceVersion(4, 1, PriceVector(input=1))))
    reply = admitted(call, KEY, newer, held(10), record, lease_ms=1)
    assert reply is not None
    assert (reply.price_version, reply.price, reply.input_tokens, reply.input_exact) == (3, PRICE, 5, True)
    gone = msgspec.structs.replace(MODEL, prices=newer.prices[1:])
    assert admitted(call, KEY, gone, held(10), record, lease_ms=1) is None


def test_the_next_request_brings_its_body_while_the_money_is_scarce() -> None:
    call = chat(output_tokens_max=10)
    record = ask_for(call).record
    scarce = admitted(call, KEY, MODEL, held(10, available=1_000_000), record, lease_ms=1)
    plenty = admitted(call, KEY, MODEL, held(10), record, lease_ms=1)
    assert scarce is not None
    assert plenty is not None
    assert (scarce.count_next, plenty.count_next) == (True, False)


def test_an_orphan_is_charged_its_checkpoint_but_never_more_than_its_hold() -> None:
    session_id = new_session_id()
    record = ask_for(chat(stream=True)).record
    due = Due("acct_1", "key_1", 5, 4, 50_000, 120, 40_000, record)
    usage = orphan_record(session_id, due)
    assert (usage.cost_nanos, usage.outcome, usage.usage_source) == (40_000, "edge_lost", "checkpoint")
    assert usage.tokens == TokenCounts(input=225, output=120)
    assert usage.price_version == 3
    assert abs(usage.started_at_ms - time.time() * 1000) < 5_000
    assert orphan_record(session_id, due._replace(used_nanos=60_000)).cost_nanos == 50_000


@pytest.mark.parametrize(
    ("addresses", "client", "is_allowed"),
    [
        (None, None, True),
        (("10.0.0.0/8",), "10.9.8.7", True),
        (("10.0.0.0/8",), "11.0.0.1", False),
        (("10.0.0.1",), "10.0.0.1", True),
        (("10.0.0.1/8",), "10.2.0.1", True),
        (("2001:db8::/32",), "2001:db8::1", True),
        (("2001:db8::/32",), "10.0.0.1", False),
        (("10.0.0.0/8",), None, False),
        (("10.0.0.0/8",), "not an address", False),
        ((), "10.0.0.1", False),
    ],
)
def test_addresses_are_checked_by_network(
    addresses: tuple[str, ...] | None, client: str | None, is_allowed: bool
) -> None:
    key = msgspec.structs.replace(KEY, limits=KeyLimits(addresses=addresses))
    assert address_is_allowed(key, client) is is_allowed


def test_rate_limits_are_told_only_where_there_are_any() -> None:
    assert rate_limit_state(KEY, None, None) is None
    key = msgspec.structs.replace(KEY, limits=KeyLimits(requests_per_minute=60))
    state = rate_limit_state(key, 15, None)
    assert state is not None
    assert (state.requests_remaining, state.requests_reset_ms) == (45, 15_000)
    assert state.tokens_limit is None
