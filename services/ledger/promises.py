"""What a fence's roll-call decides: pure, no I/O.

An ended epoch's loan may go back when no edge can deliver anything more of it that the ledger does not know
of: each has promised (its answer lists what may still be charged), or was given up after a long silence. What
the listed sessions hold stays in escrow until they have ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from services.common.contracts.recovery import OpenSession, Promise
from services.common.ids import BUCKETS, bucket_of
from services.common.money import NANOS_MAX
from services.ledger.postings import is_session_id


@dataclass(frozen=True, slots=True)
class Standing:
    """An active edge and one bucket. `promised_epoch`: the newest it has promised, as the process
    `promised_by`. `gone_epoch`: the newest epoch for which it was given up."""

    edge_id: str
    incarnation: str
    promised_by: str
    promised_epoch: int
    gone_epoch: int


@dataclass(frozen=True, slots=True)
class Debt:
    """What an edge still has to promise. `is_optional`: no loan waits for its answer."""

    edge_id: str
    incarnation: str
    internal_url: str
    silent_ms: int
    bucket: int
    epoch: int
    is_optional: bool


@dataclass(slots=True)
class Ask:
    """One roll-call to one edge; it is sent whole."""

    edge_id: str
    incarnation: str
    internal_url: str
    silent_ms: int
    epochs: dict[int, int] = field(default_factory=dict)
    is_awaited: bool = False

    def is_silent(self, edge_grace_ms: int) -> bool:
        return self.silent_ms > edge_grace_ms


@dataclass(frozen=True, slots=True)
class Answer:
    """What of a promise counts. `refused`: ids of listed sessions that can't be."""

    epochs: Mapping[int, int]
    sessions: Sequence[OpenSession]
    refused: Sequence[str]


def waits_for(standings: Iterable[Standing], epoch: int) -> list[str]:
    """The edges whose promise the return of this epoch's loans waits for."""
    return [edge.edge_id for edge in standings if not _has_promised(edge, epoch) and edge.gone_epoch <= epoch]


def _has_promised(edge: Standing, epoch: int) -> bool:
    # A new process must say itself what its log holds.
    return edge.promised_by == edge.incarnation and edge.promised_epoch > epoch


def returnable_nanos(*, rest: int, held: int, unposted: int) -> int:
    """What of a loan's rest may go back now: listed holds and what waits in the outbox stay."""
    return max(0, rest - held - unposted)


def asks_of(debts: Iterable[Debt]) -> list[Ask]:
    """One ask an edge, with all its buckets."""
    asks: dict[str, Ask] = {}
    for debt in debts:
        ask = asks.get(debt.edge_id)
        if ask is None:
            ask = asks[debt.edge_id] = Ask(debt.edge_id, debt.incarnation, debt.internal_url, debt.silent_ms)
        ask.epochs[debt.bucket] = debt.epoch
        ask.is_awaited = ask.is_awaited or not debt.is_optional
    return list(asks.values())


def judge(asked: Mapping[int, int], promise: Promise, gone_epochs: Mapping[int, int]) -> Answer:
    """`gone_epochs`, by bucket: the roll-call went on without this edge, so that nothing is reserved for what
    it lists of epochs before. A promise of less than what was asked is none."""
    epochs = {
        bucket: promise.epochs[bucket]
        for bucket, epoch in asked.items()
        if promise.epochs.get(bucket, 0) >= epoch
    }
    sessions, refused = [], []
    for session in promise.sessions:
        if not _can_be(session):
            refused.append(session.session_id)
        elif gone_epochs.get(session.bucket, 0) <= session.epoch < epochs.get(session.bucket, 0):
            sessions.append(session)
    return Answer(epochs, sessions, refused)


def _can_be(session: OpenSession) -> bool:
    return (
        is_session_id(session.session_id)
        and 0 <= session.bucket < BUCKETS
        and session.bucket == bucket_of(session.account_id)
        and session.epoch > 0
        and 0 <= session.held_nanos <= NANOS_MAX
        and "\x00" not in session.account_id
    )
