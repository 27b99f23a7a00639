"""Counts of texts that come again: a chat's next request repeats the former one's messages."""

from __future__ import annotations

import threading
from collections import OrderedDict
from hashlib import blake2b

from services.meter.counting.encodings import EncodingName
from services.meter.counting.text import count_tokens

# Hashing a shorter text costs as much as counting it.
CACHED_CHARS_MIN = 256
# Key tuple, digest, int, and their place in an OrderedDict: measured, rounded up.
_ENTRY_BYTES = 320


class CountCache:
    """The last counts, by encoding and digest of the text; never the text itself. Thread-safe."""

    def __init__(self, cache_bytes_max: int) -> None:
        self._entries_max = cache_bytes_max // _ENTRY_BYTES
        self._entries: OrderedDict[tuple[EncodingName, bytes], int] = OrderedDict()
        self._lock = threading.Lock()
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    def count(self, name: EncodingName, text: str) -> int:
        """As `count_tokens`."""
        if len(text) < CACHED_CHARS_MIN or self._entries_max == 0:
            return count_tokens(name, text)
        key = (name, blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest())
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
                self.hits += 1
                return found
        tokens = count_tokens(name, text)
        with self._lock:
            self.misses += 1
            self._entries[key] = tokens
            if len(self._entries) > self._entries_max:
                self._entries.popitem(last=False)
        return tokens
