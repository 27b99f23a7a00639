"""What the ledger and the edges say to each other after a loss of Redis, and about edges' logs (HTTP, JSON).

Ledger to edge
  POST /internal/v1/roll_call          RollCall    -> Promise
Edge to ledger
  POST /internal/v1/sessions/missing   SessionIds  -> SessionIds
  POST /internal/v1/recovered          Recovered   -> PostingReply
"""

from __future__ import annotations

import msgspec

from services.common.contracts.lending import PostingEntry
from services.common.ids import AccountId, EdgeId, SessionId


class RollCall(msgspec.Struct, frozen=True):
    """`epochs[bucket]`: the new epochs. From its answer on, the edge refuses every reply of an older one."""

    epochs: dict[int, int]


class OpenSession(msgspec.Struct, frozen=True):
    """A session of an older epoch that is running, or ended but not known to be posted. It may still
    charge up to `held_nanos` to that epoch's escrow."""

    session_id: SessionId
    account_id: AccountId
    bucket: int
    epoch: int
    held_nanos: int


class Promise(msgspec.Struct, frozen=True):
    """An edge's answer to a roll-call: the epochs are durable in its log, and this is all it has of
    older ones, late replies included. What an earlier answer listed and this one does not has ended,
    and its posting or release is known to the ledger."""

    edge_id: EdgeId
    incarnation: str
    epochs: dict[int, int]
    sessions: tuple[OpenSession, ...]


class SessionIds(msgspec.Struct, frozen=True):
    session_ids: tuple[SessionId, ...]


class Recovered(msgspec.Struct, frozen=True):
    """What an edge's log says of sessions that the ledger reported missing. `charged` are posted like
    outbox entries (those of the current epoch through a meter, which ends their holds); `released` cost
    nothing. `log_id` names the log's directory and incarnation. At most 500 in all.

    Sent again whole when it is not answered. Afterwards none of them is reported missing, but for those
    that still wait in an outbox."""

    edge_id: EdgeId
    log_id: str
    charged: tuple[PostingEntry, ...]
    released: tuple[SessionId, ...]
