"""Identifiers carry their time, hide their secret and spread over the buckets."""

import uuid
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common import ids


@given(st.integers(0, 2**48 - 1))
def test_a_session_id_is_a_uuid7_that_tells_its_time(now_ms: int) -> None:
    text = ids.new_uuid7(now_ms)
    parsed = uuid.UUID(text)
    assert str(parsed) == text
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122
    assert ids.uuid7_ms(text) == now_ms


@pytest.mark.parametrize("text", ["", "x" * 36, str(uuid.UUID(int=2**127))])
def test_what_is_no_uuid7_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="UUIDv7"):
        ids.uuid7_ms(text)


def test_the_hash_of_an_api_key_does_not_contain_it() -> None:
    api_key = ids.new_api_key()
    assert api_key.startswith(ids.API_KEY_PREFIX)
    assert len(api_key) == len(ids.API_KEY_PREFIX) + 48
    assert api_key[6:] not in ids.hash_api_key(api_key)
    assert ids.hash_api_key(api_key) == ids.hash_api_key(api_key)


def test_accounts_spread_over_all_buckets() -> None:
    spread = Counter(ids.bucket_of(ids.new_account_id()) for _ in range(20_000))
    assert set(spread) == set(range(ids.BUCKETS))
    assert max(spread.values()) < 4 * 20_000 / ids.BUCKETS
