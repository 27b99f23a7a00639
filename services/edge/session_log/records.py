"""The log's records and their framing. Pure.

A segment is a header and records, the rest zeros. A record is `crc32, magic, kind, length, number`
(little-endian) and its payload; the CRC covers all that follows it. `number` counts the records of
one log without a gap, so that a lost page shows.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final
from zlib import crc32

import msgspec

from services.common.contracts.charging import Admitted, SessionRef, Settle
from services.common.ids import EdgeId, SessionId
from services.common.money import PriceVector

HELD: Final = 1
SEGMENT: Final = 2
CLOSE: Final = 3
DONE: Final = 4
KINDS: Final = (HELD, SEGMENT, CLOSE, DONE)

MAGIC: Final = 0x31524C4D
"""`MLR1`: a record of this version."""
SEGMENT_MAGIC: Final = b"MWSLOG01"
SEGMENT_HEADER_BYTES: Final = 64
RECORD_HEADER_BYTES: Final = 24
RECORD_BYTES_MAX: Final = 16 * 1024
DONE_RECORD_BYTES: Final = RECORD_HEADER_BYTES + 16
USAGE_JSON_BYTES_MAX: Final = 4 * 1024
CLOSE_BYTES_BESIDE: Final = 1_024
"""What a CLOSE holds beside the usage JSON and what HELD holds too: channel, upstream model, counts."""

_CRC: Final = struct.Struct("<I")
_REST: Final = struct.Struct("<IIIQ")
_HEADER: Final = struct.Struct("<IIIIQ")
_SEGMENT_HEADER: Final = struct.Struct("<8sQQ")
_MAGIC_BYTES: Final = _CRC.pack(MAGIC)


class EpochHold(msgspec.Struct, frozen=True, array_like=True):
    """What a session holds in one epoch of its bucket."""

    epoch: int
    held_nanos: int


class Held(msgspec.Struct, frozen=True, array_like=True):
    """An admitted session, with all that recovery needs to price it."""

    ref: SessionRef
    seq: int
    edge_id: EdgeId
    held_nanos: int
    granted_tokens: int
    price_version: int
    price: PriceVector
    ratio_ppm: int
    endpoint: str
    model: str
    stream: bool
    input_tokens: int
    input_exact: bool
    started_at_ms: int

    @classmethod
    def of(
        cls,
        admitted: Admitted,
        *,
        edge_id: EdgeId,
        endpoint: str,
        model: str,
        stream: bool,
        started_at_ms: int,
    ) -> Held:
        return cls(
            ref=admitted.ref,
            seq=admitted.seq,
            edge_id=edge_id,
            held_nanos=admitted.held_nanos,
            granted_tokens=admitted.granted_output_tokens,
            price_version=admitted.price_version,
            price=admitted.price,
            ratio_ppm=admitted.ratio_ppm,
            endpoint=endpoint,
            model=model,
            stream=stream,
            input_tokens=admitted.input_tokens,
            input_exact=admitted.input_exact,
            started_at_ms=started_at_ms,
        )


class NewEpoch(msgspec.Struct, frozen=True, array_like=True):
    """A session goes on in a newer epoch, with a hold of its own there. `holds`: all, oldest epoch first;
    those of older epochs stay as they are from now on."""

    session_id: SessionId
    holds: tuple[EpochHold, ...]


class Closed(msgspec.Struct, frozen=True, array_like=True):
    """`settle`: exactly the call that ends the session. `holds`: oldest epoch first."""

    settle: Settle
    holds: tuple[EpochHold, ...]


def with_total(holds: tuple[EpochHold, ...], held_nanos: int) -> tuple[EpochHold, ...]:
    """`holds` with a sum of `held_nanos`: only the newest epoch's hold changes."""
    older = holds[:-1]
    rest_nanos = held_nanos - sum(hold.held_nanos for hold in older)
    return (*older, EpochHold(holds[-1].epoch, max(0, rest_nanos)))


encode: Final = msgspec.msgpack.Encoder().encode
_held = msgspec.msgpack.Decoder(Held)
_new_epoch = msgspec.msgpack.Decoder(NewEpoch)
_closed = msgspec.msgpack.Decoder(Closed)
decode_held: Final = _held.decode
decode_new_epoch: Final = _new_epoch.decode
decode_closed: Final = _closed.decode


def session_key(session_id: str) -> bytes:
    """The 16 bytes of a session id. Raises ValueError when it is no UUID."""
    key = bytes.fromhex(session_id.replace("-", ""))
    if len(key) != 16:
        raise ValueError(f"{session_id[:40]!r} is not a UUID")
    return key


def frame(kind: int, number: int, payload: bytes) -> bytes:
    rest = _REST.pack(MAGIC, kind, len(payload), number) + payload
    return _CRC.pack(crc32(rest)) + rest


def segment_header(sequence: int, first_number: int) -> bytes:
    """`sequence`: segments in the order of their use. `first_number`: of the first record inside."""
    fields = _SEGMENT_HEADER.pack(SEGMENT_MAGIC, sequence, first_number)
    return (fields + _CRC.pack(crc32(fields))).ljust(SEGMENT_HEADER_BYTES, b"\0")


def read_segment_header(data: bytes) -> tuple[int, int] | None:
    """(sequence, first record's number); None when it can't be read."""
    size = _SEGMENT_HEADER.size
    if len(data) < size + 4 or _CRC.unpack_from(data, size)[0] != crc32(data[:size]):
        return None
    magic, sequence, first_number = _SEGMENT_HEADER.unpack_from(data)
    return (sequence, first_number) if magic == SEGMENT_MAGIC else None


@dataclass(frozen=True, slots=True)
class Record:
    kind: int
    number: int
    payload: bytes


@dataclass(slots=True)
class Scan:
    """What one segment holds. `torn`: behind the last record is one that is not whole."""

    records: list[Record]
    torn: bool = False


def scan_segment(data: bytes) -> Scan:
    """Every record that is whole, also behind one that is not (the numbers show the gap). Never raises."""
    scan = Scan([])
    offset = SEGMENT_HEADER_BYTES
    while True:
        size = _read_record(data, offset, scan.records)
        if size:
            offset += size
            continue
        if not data[offset:].strip(b"\0"):
            return scan
        after = _next_record(data, offset + 1)
        if after is None:
            scan.torn = True
            return scan
        offset = after


def _read_record(data: bytes, offset: int, records: list[Record]) -> int:
    """Append the record at `offset`; its size in bytes, 0: there is none."""
    if offset + RECORD_HEADER_BYTES > len(data):
        return 0
    crc, magic, kind, length, number = _HEADER.unpack_from(data, offset)
    end: int = offset + RECORD_HEADER_BYTES + length
    if magic != MAGIC or kind not in KINDS or length > RECORD_BYTES_MAX or end > len(data):
        return 0
    if crc32(data[offset + 4 : end]) != crc:
        return 0
    records.append(Record(kind, number, data[offset + RECORD_HEADER_BYTES : end]))
    return end - offset


def _next_record(data: bytes, offset: int) -> int | None:
    while (found := data.find(_MAGIC_BYTES, offset + 4)) >= 0:
        if _read_record(data, found - 4, []):
            return found - 4
        offset = found - 3
    return None
