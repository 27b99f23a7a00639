"""The log of what was received and sent: a ring in memory, and JSON lines in a file."""

import hashlib
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import orjson

ROWS_MAX: Final = 100_000
RING_BYTES_MAX: Final = 128 * 1024 * 1024
# A header that may carry a secret is never written down.
_SECRET_HEADERS: Final = frozenset(
    {"authorization", "proxy-authorization", "api-key", "x-api-key", "cookie", "x-goog-api-key"}
)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(slots=True, kw_only=True)
class Row:
    """One request's row while it is being answered. Times are milliseconds since 1970."""

    request_id: str
    path: str
    headers: dict[str, str]
    api_key_hash: str | None = None
    model: str | None = None
    stream: bool = False
    body_sha256: str | None = None
    body_bytes: int = 0
    messages_count: int = 0
    max_tokens: int | None = None
    include_usage: bool = False
    fault: str | None = None
    status: int | None = None
    usage: dict[str, Any] | None = None
    finished: bool = False
    client_disconnected: bool = False
    disconnected_at_ms: int | None = None
    arrived_at_ms: int = field(default_factory=_now_ms)
    first_write_at_ms: int | None = None
    last_write_at_ms: int | None = None
    tokens: list[int] = field(default_factory=list)
    chunks: int = 0
    text_bytes: int = 0
    text_hash: Any = field(default_factory=hashlib.sha256)

    def note_body(self, raw: bytes) -> None:
        """Keep the size and the hash of the decoded body."""
        self.body_bytes = len(raw)
        self.body_sha256 = hashlib.sha256(raw).hexdigest()

    def sent(self, choice: int, tokens: int, text: str) -> None:
        """Count `tokens` and `text` of `choice` as written to the socket."""
        while len(self.tokens) <= choice:
            self.tokens.append(0)
        self.tokens[choice] += tokens
        self.chunks += 1
        encoded = text.encode()
        self.text_bytes += len(encoded)
        self.text_hash.update(encoded)

    def as_dict(self, seq: int) -> dict[str, Any]:
        """The finished row as it is stored: every field is documented in docs/emulator.md."""
        after_ms = None
        if self.disconnected_at_ms is not None:
            after_ms = max(0, self.disconnected_at_ms - (self.last_write_at_ms or self.arrived_at_ms))
        return {
            "seq": seq,
            "request_id": self.request_id,
            "x_request_id": self.headers.get("x-request-id"),
            "arrived_at_ms": self.arrived_at_ms,
            "path": self.path,
            "model": self.model,
            "stream": self.stream,
            "body_sha256": self.body_sha256,
            "body_bytes": self.body_bytes,
            "api_key_hash": self.api_key_hash,
            "messages_count": self.messages_count,
            "max_tokens": self.max_tokens,
            "include_usage": self.include_usage,
            "fault": self.fault,
            "status": self.status,
            "tokens": self.tokens,
            "tokens_total": sum(self.tokens),
            "chunks": self.chunks,
            "text_sha256": self.text_hash.hexdigest(),
            "text_bytes": self.text_bytes,
            "usage": self.usage,
            "finished": self.finished,
            "client_disconnected": self.client_disconnected,
            "first_write_at_ms": self.first_write_at_ms,
            "last_write_at_ms": self.last_write_at_ms,
            "disconnected_at_ms": self.disconnected_at_ms,
            "disconnected_after_last_write_ms": after_ms,
            "ended_at_ms": _now_ms(),
            "headers": self.headers,
        }


def safe_headers(headers: Any) -> dict[str, str]:
    """Header names in lower case with their values, without those that carry secrets."""
    return {
        name.lower(): value[:1024] for name, value in headers.items() if name.lower() not in _SECRET_HEADERS
    }


def key_hash(api_key: str) -> str:
    """The first 12 hex digits of the key's sha256: enough to tell keys apart, not to use one."""
    return hashlib.sha256(api_key.encode(errors="replace")).hexdigest()[:12]


class EmissionLog:
    """Finished rows, the newest `rows_max` of them in memory, all of them in the file if there is one."""

    def __init__(self, *, file: Path | None = None, rows_max: int = ROWS_MAX) -> None:
        self._rows: deque[tuple[int, bytes]] = deque()
        self._rows_max = rows_max
        self._bytes = 0
        self._seq = 0
        self._file: IO[bytes] | None = file.open("ab", buffering=0) if file else None
        self.totals: dict[str, int] = dict.fromkeys(
            ("requests", "prompt_tokens", "completion_tokens", "tokens_sent", "client_disconnects"), 0
        )

    def add(self, row: Row) -> None:
        """Store a row that has ended, at once: whoever has read the answer finds its row."""
        self._seq += 1
        line = orjson.dumps(row.as_dict(self._seq))
        self._rows.append((self._seq, line))
        self._bytes += len(line)
        while len(self._rows) > self._rows_max or self._bytes > RING_BYTES_MAX:
            self._bytes -= len(self._rows.popleft()[1])
        if self._file is not None:
            self._file.write(line + b"\n")
        totals = self.totals
        totals["requests"] += 1
        totals["tokens_sent"] += sum(row.tokens)
        totals["client_disconnects"] += row.client_disconnected
        if row.usage is not None:
            totals["prompt_tokens"] += row.usage.get("prompt_tokens", 0)
            totals["completion_tokens"] += row.usage.get("completion_tokens", 0)

    def since(self, seq: int) -> bytes:
        """A JSON array of the rows after `seq`, oldest first."""
        return b"[" + b",".join(line for number, line in self._rows if number > seq) + b"]"

    def clear(self) -> None:
        """Forget the rows in memory. Numbers go on, and the file keeps its lines."""
        self._rows.clear()
        self._bytes = 0

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
