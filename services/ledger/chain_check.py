"""One block of the chain against the journal as it is now: what was altered, deleted or put in. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from services.ledger import chain
from services.ledger.chain import Block, DamagedContent, Transaction

NOTHING: Final = "none"


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """`what` is wrong with which `subject`; `expected`: as it was sealed, or as the entries say."""

    what: str
    subject: str
    block: int | None = None
    transaction_id: int | None = None
    field: str | None = None
    expected: str
    found: str


@dataclass(frozen=True, slots=True)
class Link:
    """Where the chain has been followed to. `hashes`: any of them may be the next block's `prev_hash`: when
    a stored hash was altered, that has been told already."""

    number: int
    last_id: int
    hashes: frozenset[bytes]


class SealedBlock:
    """A block as stored."""

    def __init__(self, block: Block, packed: bytes) -> None:
        self.block = block
        self.content: bytes | None
        self.sealed: list[Transaction] | None = None
        try:
            self.content = chain.unpack(packed)
        except DamagedContent:
            self.content = None
        self.hash = None if self.content is None else chain.block_hash(block, self.content)
        self.is_intact = self.hash == block.hash

    def decode(self) -> list[Transaction] | None:
        """The transactions as sealed; None when the content is damaged."""
        if self.sealed is None and self.content is not None:
            try:
                self.sealed = chain.decode_all(self.content)
            except DamagedContent:
                self.content = None
        return self.sealed

    def last_id(self, next_first_id: int | None) -> int:
        """Where it ends. If it was altered, two of three decide: it, its content, the next one's start."""
        if self.is_intact:
            return self.block.last_id
        votes = [self.block.last_id]
        sealed = self.decode()
        if sealed and self.content is not None:
            own = replace(self.block, last_id=sealed[-1].id)
            if chain.block_hash(own, self.content) == self.block.hash:
                return own.last_id
            votes.append(own.last_id)
        if next_first_id is not None:
            votes.append(next_first_id - 1)
        return Counter(votes).most_common(1)[0][0]


def check_link(link: Link, block: Block) -> tuple[list[Fault], Link]:
    """Does this block come after that link? A gap is one fault, and the chain is followed behind it."""
    faults = []
    if block.number != link.number + 1:
        missing = f"blocks {link.number + 1} to {block.number - 1}"
        if block.number == link.number + 2:
            missing = f"block {link.number + 1}"
        faults.append(
            Fault(
                what="block deleted", subject=missing, block=link.number + 1, expected="there", found=NOTHING
            )
        )
        link = Link(block.number - 1, block.first_id - 1, frozenset({block.prev_hash}))
    return faults, link


def check_block(stored: SealedBlock, link: Link, found: Sequence[Transaction]) -> list[Fault]:
    """`found`: the journal's transactions behind `link`, up to this block's end, by id."""
    block, found_bytes = stored.block, chain.encode_all(found)
    faults = _check_place(block, link)
    if stored.is_intact:
        return faults + (_compare(stored, found) if found_bytes != stored.content else [])
    if chain.block_hash(block, found_bytes) == block.hash:
        # The journal's own rows make the hash right: it is the sealed copy that was altered.
        return [*faults, _altered(block, "content", "as the journal has it", "something else")]
    faults += _check_counts(block, stored.decode() or ())
    if not faults:
        faults = [_altered(block, "hash", block.hash.hex(), stored.hash.hex() if stored.hash else NOTHING)]
    if stored.decode() is None:
        return [*faults, _altered(block, "content", "as sealed", "damaged")]
    return faults + (_compare(stored, found) if found_bytes != stored.content else [])


def _check_place(block: Block, link: Link) -> list[Fault]:
    faults = []
    if block.first_id != link.last_id + 1:
        faults.append(_altered(block, "first_id", link.last_id + 1, block.first_id))
    if block.prev_hash not in link.hashes:
        expected = " or ".join(sorted(value.hex() for value in link.hashes))
        faults.append(_altered(block, "prev_hash", expected, block.prev_hash.hex()))
    return faults


def _check_counts(block: Block, sealed: Sequence[Transaction]) -> list[Fault]:
    if not sealed:
        return []
    amounts = [entry.amount_nanos or 0 for transaction in sealed for entry in transaction.entries]
    counts = {
        "last_id": sealed[-1].id,
        "transactions": len(sealed),
        "entries": len(amounts),
        "moved_nanos": sum(amount for amount in amounts if amount > 0),
    }
    return [
        _altered(block, name, expected, getattr(block, name))
        for name, expected in counts.items()
        if getattr(block, name) != expected
    ]


def _compare(stored: SealedBlock, found: Sequence[Transaction]) -> list[Fault]:
    number = stored.block.number
    sealed = {transaction.id: transaction for transaction in stored.decode() or ()}
    present = {transaction.id: transaction for transaction in found}
    faults = []
    for transaction_id in sorted(sealed.keys() | present.keys()):
        before, after = sealed.get(transaction_id), present.get(transaction_id)
        if before is None or after is None:
            faults.append(
                Fault(
                    what="transaction inserted" if before is None else "transaction deleted",
                    subject=f"transaction {transaction_id}",
                    block=number,
                    transaction_id=transaction_id,
                    expected=summary(before),
                    found=summary(after),
                )
            )
        else:
            faults += [
                Fault(
                    what="transaction altered",
                    subject=f"transaction {transaction_id}",
                    block=number,
                    transaction_id=transaction_id,
                    field=difference.field,
                    expected=difference.sealed,
                    found=difference.found,
                )
                for difference in chain.compare(before, after)
            ]
    return faults


def summary(transaction: Transaction | None) -> str:
    if transaction is None:
        return NOTHING
    entries = ", ".join(chain.describe(entry) for entry in transaction.entries)
    actor = transaction.actor or "the ledger"
    return f"{transaction.kind} {transaction.ref} by {actor}: {entries or 'no entries'}"


def _altered(block: Block, field: str, expected: object, found: object) -> Fault:
    return Fault(
        what="block altered",
        subject=f"block {block.number}",
        block=block.number,
        field=field,
        expected=str(expected),
        found=str(found),
    )
