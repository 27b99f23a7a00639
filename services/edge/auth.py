"""Which API key a request carries. `Open` at the meter authenticates it; here only its form is checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from services.common.errors import InvalidApiKey

API_KEY_BYTES_MAX: Final = 256
_API_KEY: Final = re.compile(rf"[\x21-\x7e]{{1,{API_KEY_BYTES_MAX}}}")
MISSING: Final = (
    "No API key was provided. Please pass yours as `Authorization: Bearer sk-...`, `x-api-key` or `api-key`."
)


def read_api_key(headers: Mapping[str, str]) -> str:
    """The key of `Authorization: Bearer`, `x-api-key` or `api-key`, in this order.

    Raises InvalidApiKey when there is none, or one that can't be a key.
    """
    authorization = headers.get("Authorization", "")
    scheme, _, key = authorization.partition(" ")
    key = key.strip() if scheme.lower() == "bearer" else ""
    key = key or headers.get("x-api-key", "") or headers.get("api-key", "")
    if not key:
        if authorization:
            raise InvalidApiKey
        raise InvalidApiKey(MISSING)
    if _API_KEY.fullmatch(key) is None:
        raise InvalidApiKey
    return key
