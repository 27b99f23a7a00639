"""The hash chain over the journal: how transactions become bytes, blocks and hashes. Pure.

The encoding is injective: every field has a length or a fixed size, NULL is not the empty text, and the
entries of a transaction, which have no order, stand sorted. So two journals with the same bytes are equal.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Final, NamedTuple

GENESIS_HASH: Final = bytes(32)
_DOMAIN: Final = b"meterway journal block 1\n"
_CONTENT_BYTES_MAX: Final = 256 * 1024 * 1024
_COMPRESSION_LEVEL: Final = 3
_NULL: Final = b"\xff\xff\xff\xff"
_U32: Final = struct.Struct(">I")
_I64: Final = struct.Struct(">q")
_HEAD: Final = struct.Struct(">qq")
_SEALED: Final = struct.Struct(">qqqqq")


class DamagedContent(ValueError):
    """These bytes are no block's content."""


class Entry(NamedTuple):
    """None only where somebody took a constraint away."""

    ledger_account: str | None
    amount_nanos: int | None
    account_id: str | None
    epoch: int | None


class Transaction(NamedTuple):
    """`created_at_us`: microseconds since 2000-01-01 UTC, as Postgres keeps it."""

    id: int
    created_at_us: int
    kind: str | None
    ref: str | None
    reason: str | None
    actor: str | None
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """`moved_nanos`: what the entries above zero sum up to. `sealed_at_us`: as `created_at_us`."""

    number: int
    first_id: int
    last_id: int
    transactions: int
    entries: int
    moved_nanos: int
    sealed_at_us: int
    prev_hash: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class FieldDifference:
    field: str
    sealed: str
    found: str


def encode(transaction: Transaction) -> bytes:
    """The canonical bytes of a transaction. Their order does not tell the entries'."""
    number, created_at_us, kind, ref, reason, actor, entries = transaction
    encoded = sorted(map(_entry_bytes, entries))
    return b"".join(
        (
            _HEAD.pack(number, created_at_us),
            _text(kind),
            _text(ref),
            _text(reason),
            _text(actor),
            _U32.pack(len(encoded)),
            *encoded,
        )
    )


def encode_all(transactions: Iterable[Transaction]) -> bytes:
    return b"".join(map(encode, transactions))


def decode_all(content: bytes) -> list[Transaction]:
    """The inverse of `encode_all`; entries come in canonical order. Raises DamagedContent."""
    reader = _Reader(content)
    found = []
    try:
        while reader.at < len(content):
            found.append(reader.transaction())
    except (struct.error, UnicodeDecodeError) as error:
        raise DamagedContent(str(error)) from error
    return found


def seal(
    transactions: Sequence[Transaction], *, number: int, first_id: int, prev_hash: bytes, sealed_at_us: int
) -> tuple[Block, bytes]:
    """The next block and its packed content. `transactions`: at least one, by id."""
    content = encode_all(transactions)
    amounts = [entry.amount_nanos or 0 for transaction in transactions for entry in transaction.entries]
    block = Block(
        number=number,
        first_id=first_id,
        last_id=transactions[-1].id,
        transactions=len(transactions),
        entries=len(amounts),
        moved_nanos=sum(amount for amount in amounts if amount > 0),
        sealed_at_us=sealed_at_us,
        prev_hash=prev_hash,
        hash=b"",
    )
    return replace(block, hash=block_hash(block, content)), zlib.compress(content, _COMPRESSION_LEVEL)


def block_hash(block: Block, content: bytes) -> bytes:
    """SHA-256 over the block's fields, its predecessor's hash and its content; `block.hash` is not read."""
    sealed = _SEALED.pack(block.number, block.first_id, block.last_id, block.transactions, block.entries)
    moved = block.moved_nanos.to_bytes(17, "big", signed=True)
    return sha256(
        b"".join(
            (
                _DOMAIN,
                sealed,
                moved,
                _I64.pack(block.sealed_at_us),
                _U32.pack(len(block.prev_hash)),
                block.prev_hash,
                sha256(content).digest(),
            )
        )
    ).digest()


def unpack(packed: bytes) -> bytes:
    """A block's content. Raises DamagedContent."""
    inflate = zlib.decompressobj()
    try:
        content = inflate.decompress(packed, _CONTENT_BYTES_MAX)
    except zlib.error as error:
        raise DamagedContent(str(error)) from error
    if not inflate.eof or inflate.unused_data:
        raise DamagedContent("cut off, too long, or followed by something")
    return content


def compare(sealed: Transaction, found: Transaction) -> list[FieldDifference]:
    """What differs between a transaction as it was sealed and as it is now."""
    differences = [
        FieldDifference(name, str(getattr(sealed, name)), str(getattr(found, name)))
        for name in ("created_at_us", "kind", "ref", "reason", "actor")
        if getattr(sealed, name) != getattr(found, name)
    ]
    before, after = Counter(sealed.entries), Counter(found.entries)
    gone = sorted((before - after).elements(), key=_entry_bytes)
    new = sorted((after - before).elements(), key=_entry_bytes)
    for entry in gone:
        # The one it has most likely become: of the same ledger account, else of the same amount.
        become = max(new, key=lambda other: _likeness(entry, other), default=None)
        if become is not None and _likeness(entry, become):
            new.remove(become)
            differences.append(FieldDifference("entry", describe(entry), describe(become)))
        else:
            differences.append(FieldDifference("entry", describe(entry), "none"))
    differences += [FieldDifference("entry", "none", describe(entry)) for entry in new]
    return differences


def describe(entry: Entry) -> str:
    """For people: the amount, where it stands and, if that doesn't tell it, whose it is."""
    epoch = "" if entry.epoch is None else f" epoch {entry.epoch}"
    is_told = entry.account_id is None or entry.account_id in (entry.ledger_account or "")
    owner = "" if is_told else f" of {entry.account_id}"
    return f"{entry.amount_nanos} nanodollars at {entry.ledger_account}{epoch}{owner}"


def _likeness(one: Entry, other: Entry) -> int:
    return sum(
        weight for weight, a, b in zip((4, 2, 1, 1), one, other, strict=True) if a == b and a is not None
    )


def _entry_bytes(entry: Entry) -> bytes:
    ledger_account, amount_nanos, account_id, epoch = entry
    return _text(ledger_account) + _number(amount_nanos) + _text(account_id) + _number(epoch)


def _text(value: str | None) -> bytes:
    if value is None:
        return _NULL
    raw = value.encode()
    return _U32.pack(len(raw)) + raw


def _number(value: int | None) -> bytes:
    return b"\x00" if value is None else b"\x01" + _I64.pack(value)


class _Reader:
    def __init__(self, content: bytes) -> None:
        self._content = content
        self.at = 0

    def transaction(self) -> Transaction:
        number, created_at_us = _HEAD.unpack(self._take(_HEAD.size))
        kind, ref, reason, actor = (self._text() for _field in range(4))
        (count,) = _U32.unpack(self._take(4))
        entries = []
        for _place in range(count):
            entries.append(Entry(self._text(), self._number(), self._text(), self._number()))
        return Transaction(number, created_at_us, kind, ref, reason, actor, tuple(entries))

    def _take(self, size: int) -> bytes:
        piece = self._content[self.at : self.at + size]
        if len(piece) < size:
            raise DamagedContent("cut off")
        self.at += size
        return piece

    def _text(self) -> str | None:
        size = self._take(4)
        return None if size == _NULL else self._take(_U32.unpack(size)[0]).decode()

    def _number(self) -> int | None:
        tag = self._take(1)
        if tag == b"\x00":
            return None
        if tag != b"\x01":
            raise DamagedContent("a number's tag")
        (value,) = _I64.unpack(self._take(8))
        return int(value)
