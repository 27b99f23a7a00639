"""Channel credentials at rest: AES-256-GCM under a key from the settings. Pure; no I/O.

A stored secret is `format (1 byte) | key id (4) | nonce (12) | ciphertext and tag`. The channel's and
the credential's ids are authenticated with it, so a stored secret can't be moved to another row. The
key id says which key opens it, so that keys can be rotated: put the new one in
METERWAY_ENCRYPTION_KEY and the former ones in METERWAY_ENCRYPTION_KEYS_OLD; the ledger re-encrypts
everything at its next start.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.common.settings import Secret

_FORMAT: Final = b"\x01"
_KEY_ID_BYTES: Final = 4
_NONCE_BYTES: Final = 12
_HEAD_BYTES: Final = 1 + _KEY_ID_BYTES


class InvalidEncryptionKey(ValueError):
    """An encryption key must be 32 bytes in urlsafe base64."""

    def __init__(self) -> None:
        super().__init__((type(self).__doc__ or "").strip())


class CredentialUnreadable(Exception):
    """This stored credential can't be opened: its key is not in the settings, or it was altered."""


class CredentialVault:
    """Encrypts with the current key, decrypts with the current or a former one."""

    def __init__(self, current: Secret, old: Secret | None = None) -> None:
        """`old`: former keys, comma separated. Raises InvalidEncryptionKey."""
        self._current = _decode_key(current.value)
        self._current_id = _key_id(self._current)
        former = [part for part in (old.value if old else "").split(",") if part.strip()]
        self._keys = {_key_id(key): key for key in map(_decode_key, former)}
        self._keys[self._current_id] = self._current

    def encrypt(self, secret: str, *, channel_id: str, credential_id: str) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        sealed = AESGCM(self._current).encrypt(nonce, secret.encode(), _binding(channel_id, credential_id))
        return _FORMAT + self._current_id + nonce + sealed

    def decrypt(self, stored: bytes, *, channel_id: str, credential_id: str) -> str:
        """Raises CredentialUnreadable."""
        key = self._keys.get(stored[1:_HEAD_BYTES])
        if stored[:1] != _FORMAT or key is None:
            raise CredentialUnreadable
        nonce = stored[_HEAD_BYTES : _HEAD_BYTES + _NONCE_BYTES]
        sealed = stored[_HEAD_BYTES + _NONCE_BYTES :]
        try:
            return AESGCM(key).decrypt(nonce, sealed, _binding(channel_id, credential_id)).decode()
        except (InvalidTag, ValueError) as error:
            raise CredentialUnreadable from error

    def is_current(self, stored: bytes) -> bool:
        """False: encrypted with a former key."""
        return stored[:_HEAD_BYTES] == _FORMAT + self._current_id

    def fingerprint(self, text: str) -> str:
        """Tells two texts apart without telling what they are."""
        return hmac.new(self._current, b"fingerprint:" + text.encode(), hashlib.sha256).hexdigest()


def credential_hint(secret: str) -> str:
    """What may be shown of a secret: its last four characters, if that leaves most of it hidden."""
    return f"…{secret[-4:]}" if len(secret) >= 12 else "…"


def _decode_key(text: str) -> bytes:
    text = text.strip()
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidEncryptionKey from error
    if len(key) != 32:
        raise InvalidEncryptionKey
    return key


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(b"meterway key id:" + key).digest()[:_KEY_ID_BYTES]


def _binding(channel_id: str, credential_id: str) -> bytes:
    return f"{channel_id}\x00{credential_id}".encode()
