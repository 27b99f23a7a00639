from __future__ import annotations

import base64
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.settings import Secret
from services.ledger.credentials import (
    CredentialUnreadable,
    CredentialVault,
    InvalidEncryptionKey,
    credential_hint,
)


def new_key() -> Secret:
    return Secret(base64.urlsafe_b64encode(os.urandom(32)).decode())


NAMES = {"channel_id": "chan_1", "credential_id": "cred_1"}
VAULT = CredentialVault(new_key())


@given(st.text(min_size=1, max_size=200))
def test_what_is_encrypted_comes_back_and_never_looks_the_same(secret: str) -> None:
    first, second = VAULT.encrypt(secret, **NAMES), VAULT.encrypt(secret, **NAMES)
    assert first != second
    assert VAULT.decrypt(first, **NAMES) == VAULT.decrypt(second, **NAMES) == secret


@given(st.integers(min_value=0, max_value=60), st.integers(min_value=1, max_value=255))
def test_one_changed_byte_anywhere_is_noticed(position: int, change: int) -> None:
    stored = bytearray(VAULT.encrypt("sk-0123456789abcdef0123456789abcdef", **NAMES))
    position %= len(stored)
    stored[position] ^= change
    with pytest.raises(CredentialUnreadable):
        VAULT.decrypt(bytes(stored), **NAMES)


@pytest.mark.parametrize("names", [{**NAMES, "channel_id": "chan_2"}, {**NAMES, "credential_id": "cred_2"}])
def test_a_secret_belongs_to_its_channel_and_credential(names: dict[str, str]) -> None:
    with pytest.raises(CredentialUnreadable):
        VAULT.decrypt(VAULT.encrypt("secret", **NAMES), **names)


@pytest.mark.parametrize("stored", [b"", b"\x01", b"\x02" + b"x" * 60, b"\x01" + b"x" * 60])
def test_what_was_never_encrypted_is_unreadable_and_no_crash(stored: bytes) -> None:
    with pytest.raises(CredentialUnreadable):
        VAULT.decrypt(stored, **NAMES)


def test_former_keys_decrypt_but_do_not_encrypt() -> None:
    first, second, current = new_key(), new_key(), new_key()
    stored = [CredentialVault(key).encrypt("secret", **NAMES) for key in (first, second)]
    vault = CredentialVault(current, Secret(f"{first.value}, {second.value}"))
    assert [vault.decrypt(row, **NAMES) for row in stored] == ["secret", "secret"]
    assert [vault.is_current(row) for row in stored] == [False, False]
    assert vault.is_current(vault.encrypt("secret", **NAMES))
    with pytest.raises(CredentialUnreadable):
        CredentialVault(current).decrypt(stored[0], **NAMES)


@pytest.mark.parametrize("key", ["", "short", "!" * 44, "eHh4" * 10 + "eA==", "é" * 43])
def test_a_key_that_is_not_32_bytes_of_base64_is_refused(key: str) -> None:
    with pytest.raises(InvalidEncryptionKey, match="32 bytes"):
        CredentialVault(Secret(key))


def test_a_key_may_come_without_its_padding() -> None:
    key = new_key()
    stored = CredentialVault(key).encrypt("secret", **NAMES)
    assert CredentialVault(Secret(key.value.rstrip("="))).decrypt(stored, **NAMES) == "secret"


def test_a_fingerprint_tells_texts_apart_and_depends_on_the_key() -> None:
    assert VAULT.fingerprint("a") == VAULT.fingerprint("a") != VAULT.fingerprint("b")
    assert VAULT.fingerprint("a") != CredentialVault(new_key()).fingerprint("a")


def test_a_hint_shows_the_end_of_a_long_secret_only() -> None:
    assert credential_hint("sk-0123456789abcd") == "…abcd"
    assert credential_hint("short") == "…"
