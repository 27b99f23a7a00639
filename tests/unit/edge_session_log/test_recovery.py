"""What any bytes of a log say: cut off anywhere, or with bits turned over."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from services.common.contracts.charging import Release, Settle
from services.edge.session_log import RecoveredLog, abandoned, ending_of
from services.edge.session_log.records import SEGMENT_HEADER_BYTES, scan_segment
from services.edge.session_log.recovery import Recovery
from tests.unit.edge_session_log.samples import held, open_log, settle
from tests.unit.edge_session_log.steps import Step, Walk, expected, found

STEPS: list[Step] = [
    ("held", 1, 1),
    ("progress", 1, 40),
    ("held", 2, 0),
    ("progress", 1, 300),
    ("held", 3, 1),
    ("begin_epoch", 1, 5_000),
    ("close", 2, 70),
    ("progress", 3, 11),
    ("held", 4, 0),
    ("done", 2, 0),
    ("close", 3, 900),
    ("progress", 1, 500),
    ("held", 5, 1),
    ("done", 4, 0),
]
RECORDED = [step for step in STEPS if step[0] not in ("progress", "extended")]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """(the segment, the slots) after `STEPS`."""
    root = tmp_path_factory.mktemp("log")
    log = open_log(root, slots_per_file=4)
    walk = Walk(log)
    for step in STEPS:
        walk.take(step)
    log.close()
    return (log.path / "segment-00000001").read_bytes(), (log.path / "slots-00000002").read_bytes()


def recover(segment: bytes, slots: bytes) -> RecoveredLog:
    recovery = Recovery()
    recovery.add_segment(segment)
    recovery.add_slots(slots)
    return recovery.result()


def test_a_whole_log_says_what_was_written(files: tuple[bytes, bytes]) -> None:
    log = recover(*files)
    assert found(log) == expected(STEPS)
    assert (log.torn_records, log.torn_slots, log.is_damaged) == (0, 0, False)


def test_a_log_that_is_cut_off_at_any_byte_says_what_was_whole_before_it(files: tuple[bytes, bytes]) -> None:
    segment, slots = files
    used_bytes = len(segment.rstrip(b"\0"))
    ends = [SEGMENT_HEADER_BYTES]
    for record in scan_segment(segment).records:
        ends.append(ends[-1] + 24 + len(record.payload))
    assert len(ends) == len(RECORDED) + 1
    for cut in range(used_bytes + 100):
        log = recover(segment[:cut], slots)
        whole = sum(end <= cut for end in ends[1:])
        assert {session.ref.session_id for session in log.sessions} == set(expected(RECORDED[:whole]))
        assert not log.is_damaged
        # The header's fields end before the header does; zeros after the last record are no tear.
        is_torn = 0 < cut < 28 or (SEGMENT_HEADER_BYTES < cut < ends[-1] and cut not in ends)
        assert log.torn_records == is_torn, cut


def test_a_turned_bit_never_makes_another_charge_and_never_raises(files: tuple[bytes, bytes]) -> None:
    segment, slots = files
    segment = segment[: len(segment.rstrip(b"\0")) + 40]
    true = {session.ref.session_id: ending_of(session) for session in recover(segment, slots).sessions}
    # Session 1's slot holds its last update and the one before.
    previous = recover(segment, _without_newest(slots))
    before = {session.ref.session_id: ending_of(session) for session in previous.sessions}
    chance = random.Random(7)
    noticed = 0
    for data_index, data in enumerate(files):
        for byte in range(len(segment if data_index == 0 else slots)):
            turned = bytearray(segment if data_index == 0 else data)
            turned[byte] ^= 1 << chance.randrange(8)
            pair = (bytes(turned), slots) if data_index == 0 else (segment, bytes(turned))
            log = recover(*pair)
            is_noticed = log.is_damaged or log.torn_records > 0 or log.torn_slots > 0
            noticed += is_noticed
            for session in log.sessions:
                ending, session_id = ending_of(session), session.ref.session_id
                if isinstance(ending, Release):
                    # A HELD whose CLOSE, DONE or slot is gone: never money, and never unnoticed.
                    assert ending == true.get(session_id) or is_noticed
                    continue
                allowed = [
                    _amount(known[session_id])
                    for known in (true, before)
                    if isinstance(known.get(session_id), Settle)
                ]
                # Without its last CLOSE or DONE a session is what the log knew before.
                allowed.extend(
                    _amount(settle(held(seed), output=output)) for seed, output in ((2, 70), (3, 900))
                )
                allowed.append(_estimate_of_session_3())
                assert _amount(ending) in allowed, byte
                assert ending == true.get(session_id) or is_noticed, byte
    assert noticed > len(segment) // 2


def _amount(ending: Settle | Release | None) -> tuple[str, int, int]:
    assert isinstance(ending, Settle)
    record = ending.record
    return record.session_id, record.tokens.output, record.cost_nanos


def _estimate_of_session_3() -> tuple[str, int, int]:
    """Its slot still shows 11 counted tokens and 11 bytes: used if its CLOSE can't be read."""
    return _amount(settle(held(3), output=11 + 3))


def _without_newest(slots: bytes) -> bytes:
    """Every slot without its newer half."""
    result = bytearray(slots)
    for offset in range(0, len(slots), 128):
        versions = [int.from_bytes(slots[at : at + 8], "little") for at in (offset, offset + 64)]
        newest = offset if versions[0] > versions[1] else offset + 64
        result[newest : newest + 64] = bytes(64)
    return bytes(result)


def test_a_slot_that_is_torn_in_an_update_says_what_it_said_before(tmp_path: Path) -> None:
    log = open_log(tmp_path, slots_per_file=1)
    session = log.held(held(1))
    session.progress(100, 20)
    session.progress(200, 30)
    log.close()
    file = log.path / "slots-00000002"
    whole = file.read_bytes()
    # The second update is version 2, in the first half; the third goes to the second half.
    third = bytearray(whole)
    for torn_bytes in range(1, 60):
        third[64:128] = bytes(torn_bytes) + whole[64 + torn_bytes : 128]
        file.write_bytes(bytes(third))
        (left,) = abandoned(tmp_path)
        (found_session,) = left.read().sessions
        left.unlock()
        assert (found_session.counted_tokens, found_session.uncounted_bytes) == (200, 30)
        assert found_session.is_damaged


def test_a_kill_between_a_new_epochs_record_and_its_slot_leaves_both_holds_known(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    session = log.held(held(1))
    session.extended(seq=2, held_nanos=1_000_005_000)
    slots = (log.path / "slots-00000002").read_bytes()
    session.begin_epoch(epoch=4, held_nanos=700)
    log.close()
    segment = (log.path / "segment-00000001").read_bytes()
    (found_session,) = recover(segment, slots).sessions
    assert [(hold.epoch, hold.held_nanos) for hold in found_session.holds] == [(3, 1_000_005_000), (4, 700)]


def test_records_behind_a_hole_are_still_read_and_the_log_says_so(files: tuple[bytes, bytes]) -> None:
    segment, slots = files
    records = scan_segment(segment).records
    hole = SEGMENT_HEADER_BYTES + 24 + len(records[0].payload)
    lost_bytes = 24 + len(records[1].payload)
    log = recover(segment[:hole] + bytes(lost_bytes) + segment[hole + lost_bytes :], slots)
    assert log.is_damaged
    assert {session.ref.session_id for session in log.sessions} == {
        held(seed).ref.session_id for seed in (1, 3, 5)
    }
    assert all(session.is_damaged for session in log.sessions)


def test_a_segment_that_lost_its_end_to_power_loss_is_damaged_when_another_follows(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    seeds = range(400)
    for seed in seeds:
        log.held(held(seed))
    assert log.segment_count > 1
    log.close()
    first = log.path / "segment-00000001"
    data = first.read_bytes()
    records = scan_segment(data).records
    # Cut between two records: only the numbers of the next segment show that something was there.
    lost_bytes = sum(24 + len(record.payload) for record in records[-20:])
    end = SEGMENT_HEADER_BYTES + sum(24 + len(record.payload) for record in records)
    first.write_bytes(data[: end - lost_bytes] + bytes(len(data) - end + lost_bytes))
    (left,) = abandoned(tmp_path)
    recovered = left.read()
    assert recovered.is_damaged
    assert recovered.torn_records == 0
    assert len(recovered.sessions) == len(seeds) - 20


def test_any_bytes_at_all_are_recovered_from_without_an_error() -> None:
    chance = random.Random(3)
    for size in (0, 1, 63, 64, 65, 127, 1_000, 5_000):
        for _ in range(20):
            log = recover(chance.randbytes(size), chance.randbytes(size))
            assert log.sessions == ()
