"""The edge's log: what a dead edge's sessions used is still known after kill -9.

    records     what is written, and how it is framed (pure)
    slots       progress of running streams: one small fixed slot each
    mapped_file preallocated files in the page cache
    disk_worker the thread that syncs, allocates ahead and deletes
    segments    the records' files: room, reservations, copying forward
    log         `SessionLog`, `LoggedSession`: what the edge calls
    directory   one locked directory per process; the directories of dead ones
    promises    epochs that this volume's edges promised, for good
    recovery    what the bytes of a dead edge's files say (pure)
    charges     what a recovered session is charged (pure)

Everything reaches the page cache before the caller goes on and survives kill -9. A thread syncs
it to the disk; nobody waits for that: power loss of the host may lose one sync interval.
Never prompt text, never an API key.
"""

from services.edge.session_log.charges import ending_of
from services.edge.session_log.directory import AbandonedLog, abandoned
from services.edge.session_log.log import LoggedSession, SessionLog
from services.edge.session_log.mapped_file import LogUnavailable
from services.edge.session_log.records import EpochHold, Held
from services.edge.session_log.recovery import RecoveredLog, RecoveredSession, read_log

__all__ = [
    "AbandonedLog",
    "EpochHold",
    "Held",
    "LogUnavailable",
    "LoggedSession",
    "RecoveredLog",
    "RecoveredSession",
    "SessionLog",
    "abandoned",
    "ending_of",
    "read_log",
]
