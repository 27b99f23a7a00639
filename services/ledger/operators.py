"""Operators: who may use the operators' API, and how fast a password may be guessed.

Passwords are kept as argon2id. Hashing takes tens of milliseconds and as many MiB, so it runs on a
thread, a few at a time; whoever guesses is slowed per address and per email before any hashing.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from services.common.errors import BadRequest, MeterwayError, RateLimited
from services.ledger import audit
from services.ledger.database import Connection, Database
from services.ledger.queries import load_queries

SQL = load_queries("operators")
PASSWORD_CHARS_MIN: Final = 12
PASSWORD_CHARS_MAX: Final = 200
T = TypeVar("T")
_EMAIL: Final = re.compile(r"[^@\s\x00-\x1f]{1,64}@[^@\s\x00-\x1f]{1,190}")
# By what is named. An email's limit is higher, or anybody could lock an operator out from one address.
_FAILURES_MAX: Final = {"address": 10, "email": 50}
_FAILURE_WINDOW_S: Final = 900.0
_THROTTLE_ENTRIES_MAX: Final = 10_000
_HASHES_AT_ONCE: Final = 2
_HASHES_WAITING_MAX: Final = 32


class LoginRefused(MeterwayError):
    """The operator's credential is missing or wrong. Please send `Authorization: Bearer` with the operator
    token, or an operator's email and password as Basic."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_credential"


@dataclass(frozen=True, kw_only=True)
class Operator:
    email: str
    role: str


class LoginThrottle:
    """Counts failures per name (`address:...`, `email:...`) in a window; the oldest names are forgotten
    first, so that no flood of names takes memory."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def check(self, *names: str) -> None:
        """Raises RateLimited when any of `names` has failed too often."""
        now = self._clock()
        for name in names:
            count, ends_at = self._failures.get(name, (0, 0.0))
            if count >= _FAILURES_MAX[name.partition(":")[0]] and ends_at > now:
                raise RateLimited(
                    "Too many failed logins. Please wait and try again.",
                    code="too_many_logins",
                    retry_after_ms=int((ends_at - now) * 1000) + 1,
                )

    def failed(self, *names: str) -> None:
        now = self._clock()
        for name in names:
            count, ends_at = self._failures.pop(name, (0, 0.0))
            self._failures[name] = (count + 1, ends_at) if ends_at > now else (1, now + _FAILURE_WINDOW_S)
        while len(self._failures) > _THROTTLE_ENTRIES_MAX:
            self._failures.popitem(last=False)

    def succeeded(self, *names: str) -> None:
        for name in names:
            self._failures.pop(name, None)

    def __len__(self) -> int:
        return len(self._failures)


class Operators:
    """The operators of one database."""

    def __init__(
        self,
        database: Database,
        throttle: LoginThrottle | None = None,
        *,
        hasher: PasswordHasher | None = None,
    ) -> None:
        self._database = database
        self._throttle = LoginThrottle() if throttle is None else throttle
        self._hasher = PasswordHasher() if hasher is None else hasher
        self._slots = asyncio.Semaphore(_HASHES_AT_ONCE)
        self._waiting = 0
        # Unknown emails are verified against this, so that they take as long as known ones.
        self._nobody_hash: str | None = None

    async def create_or_reset_admin(
        self, email: str, password: str, *, role: str = "owner", actor: str = "ledger"
    ) -> bool:
        """Create the operator, or give an existing one this password. Answers whether it is new.

        Raises BadRequest for an email or a password that can't be.
        """
        address = normalized_email(email)
        if not PASSWORD_CHARS_MIN <= len(password) <= PASSWORD_CHARS_MAX:
            raise BadRequest(
                f"The password must have {PASSWORD_CHARS_MIN} to {PASSWORD_CHARS_MAX} characters.",
                param="password",
            )
        password_hash = await self._on_thread(lambda: self._hasher.hash(password))

        async def write(connection: Connection) -> bool:
            created: bool = await connection.fetchval(SQL["upsert_operator"], address, password_hash, role)
            await audit.record(
                connection,
                actor=actor,
                action="operator.create" if created else "operator.reset_password",
                target=address,
                after={"role": role},
            )
            return created

        return await self._database.transaction(write)

    async def create_admin_once(self, email: str, password: str) -> bool:
        """As `create_or_reset_admin`, but an operator who is there keeps the password. Answers whether
        one was created."""
        address = normalized_email(email)
        if await self._database.fetchrow(SQL["operator_by_email"], address) is not None:
            return False
        return await self.create_or_reset_admin(address, password)

    async def verify(self, email: str, password: str, *, client_address: str) -> Operator:
        """Raises LoginRefused, or RateLimited after too many failures of this address or email."""
        names = (f"address:{client_address}", f"email:{email.strip().lower()[:254]}")
        self._throttle.check(*names)
        row = await self._database.fetchrow(SQL["operator_by_email"], email.strip().lower())
        if self._nobody_hash is None:
            self._nobody_hash = await self._on_thread(lambda: self._hasher.hash("nobody has this password"))
        stored: str = self._nobody_hash if row is None else row["password_hash"]
        matches = await self._on_thread(lambda: self._matches(stored, password[: PASSWORD_CHARS_MAX + 1]))
        if row is None or not matches:
            self._throttle.failed(*names)
            raise LoginRefused
        self._throttle.succeeded(*names)
        return Operator(email=row["email"], role=row["role"])

    def _matches(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (VerificationError, InvalidHashError):
            return False

    async def _on_thread(self, work: Callable[[], T]) -> T:
        if self._waiting >= _HASHES_WAITING_MAX:
            raise RateLimited(
                "Too many logins at once. Please wait and try again.",
                code="too_many_logins",
                retry_after_ms=1_000,
            )
        self._waiting += 1
        try:
            async with self._slots:
                return await asyncio.to_thread(work)
        finally:
            self._waiting -= 1


def normalized_email(email: str) -> str:
    """`email` in lower case. Raises BadRequest when it is no address."""
    address = email.strip().lower()
    if not _EMAIL.fullmatch(address):
        raise BadRequest("The email must be an address such as name@example.com.", param="email")
    return address
