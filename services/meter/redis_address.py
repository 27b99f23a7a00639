"""Where a Redis is and who we are there, from its URL."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """`unix_path`: a socket file instead of host and port."""

    host: str
    port: int
    username: str
    password: str
    database: int
    tls: bool
    unix_path: str = ""

    @classmethod
    def parse(cls, url: str) -> RedisAddress:
        """Raises ValueError; its message never shows the password."""
        parts = urlsplit(url)
        username, password = unquote(parts.username or ""), unquote(parts.password or "")
        if parts.scheme == "unix":
            return cls("", 0, username, password, 0, tls=False, unix_path=parts.path)
        if parts.scheme not in ("redis", "rediss") or not parts.hostname:
            raise ValueError("REDIS_URL must look like redis://user:password@host:port/0")
        try:
            database = int(parts.path.strip("/") or "0")
            port = parts.port or 6379
        except ValueError:
            raise ValueError("REDIS_URL must end in a port and a database number") from None
        return cls(parts.hostname, port, username, password, database, tls=parts.scheme == "rediss")

    def tls_context(self) -> ssl.SSLContext | None:
        return ssl.create_default_context() if self.tls else None

    def __repr__(self) -> str:
        return f"RedisAddress({self.unix_path or f'{self.host}:{self.port}'})"
