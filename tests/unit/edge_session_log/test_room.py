"""A log that is full, or whose disk is: new sessions are refused, running ones end as they should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from services.common.contracts.charging import Settle
from services.edge.session_log import LoggedSession, LogUnavailable, SessionLog, abandoned
from tests.unit.edge_session_log.samples import held, open_log, settle, with_usage

MIB = 1024 * 1024


def wait_until(is_true: Callable[[], bool], what: str) -> None:
    ends = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < ends, what
        time.sleep(0.005)


def fill(log: SessionLog, *, stream: bool = True, first: int = 0) -> list[LoggedSession]:
    """Sessions until one is refused."""
    sessions: list[LoggedSession] = []
    refused_in_a_row = 0
    for seed in range(first, first + 100_000):
        try:
            sessions.append(log.held(held(seed, stream=stream)))
            refused_in_a_row = 0
        except LogUnavailable:
            # The last segment may still be under way.
            refused_in_a_row += 1
            if refused_in_a_row == 3:
                return sessions
            time.sleep(0.05)
    pytest.fail("no session was refused")


def largest_call(session: LoggedSession) -> Settle:
    call = with_usage(settle(held(1)), "x" * 4_096)
    record = msgspec.structs.replace(call.record, session_id=session.ref.session_id)
    return Settle(ref=session.ref, seq=2, record=record)


def test_a_full_log_refuses_new_sessions_and_takes_them_again_when_others_are_done(tmp_path: Path) -> None:
    log = open_log(tmp_path, bytes_max=MIB)
    sessions = fill(log)
    assert len(sessions) > 50
    assert log.allocated_bytes <= MIB
    assert not log.is_healthy
    for session in sessions:
        session.progress(5, 6)
        session.close(largest_call(session))
    assert log.allocated_bytes <= MIB
    for session in sessions:
        session.done()
    assert log.is_healthy
    again = fill(log, first=200_000)
    # The last segment stays, with what was written into it: that much less room.
    assert len(again) > len(sessions) - 12
    log.close()


def test_every_running_session_of_a_full_log_can_still_close_with_the_largest_usage(tmp_path: Path) -> None:
    log = open_log(tmp_path, bytes_max=MIB)
    sessions = fill(log)
    calls = [largest_call(session) for session in sessions]
    for session, call in zip(sessions, calls, strict=True):
        session.close(call)
    log.close()
    (left,) = abandoned(tmp_path)
    assert [session.settle for session in left.read().sessions] == calls


def test_a_refused_session_is_a_503_that_costs_nothing_and_leaves_no_trace(tmp_path: Path) -> None:
    log = open_log(tmp_path, bytes_max=MIB)
    sessions = fill(log)
    with pytest.raises(LogUnavailable) as refused:
        log.held(held(999_999))
    assert (refused.value.status, refused.value.code) == (503, "service_unavailable")
    assert refused.value.retry_after_ms == 1_000
    assert "Nothing was charged" in refused.value.message
    assert len(log) == len(sessions)
    log.close()


DISK_FULL = """
import json, resource, sys, time
from pathlib import Path
from services.edge.session_log import LogUnavailable, disk_worker
from tests.unit.edge_session_log.samples import held, open_log, settle, with_usage

disk_worker.ALLOCATION_PAUSE_S = 0.05
log = open_log(Path(sys.argv[1]), segment_bytes=256 * 1024)
time.sleep(0.1)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
sessions = []
try:
    while True:
        sessions.append(log.held(held(len(sessions))))
except LogUnavailable:
    pass
was_healthy, errors = log.is_healthy, log.allocation_errors
for seed, session in enumerate(sessions):
    session.progress(seed + 1, seed)
    if seed % 2:
        session.close(with_usage(settle(held(seed)), "x" * 4096))
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
ends = time.monotonic() + 5
while not log.is_healthy and time.monotonic() < ends:
    time.sleep(0.01)
is_healthy = log.is_healthy
log.held(held(10_000))
print(json.dumps([len(sessions), was_healthy, errors, is_healthy]), flush=True)
"""


def test_on_a_full_disk_new_sessions_are_refused_and_running_ones_end_and_then_it_recovers(
    tmp_path: Path,
) -> None:
    program = subprocess.run(
        [sys.executable, "-c", DISK_FULL, str(tmp_path)], check=True, capture_output=True, timeout=60
    )
    count, was_healthy, errors, is_healthy = json.loads(program.stdout.splitlines()[-1])
    assert count > 20
    assert errors > 0
    assert not was_healthy
    assert is_healthy
    (left,) = abandoned(tmp_path)
    log = left.read()
    assert not log.is_damaged
    by_id = {session.ref.session_id: session for session in log.sessions}
    assert len(by_id) == count + 1
    for seed in range(count):
        session = by_id[held(seed).ref.session_id]
        if seed % 2:
            assert session.settle == with_usage(settle(held(seed)), "x" * 4_096)
        else:
            assert (session.counted_tokens, session.uncounted_bytes) == (seed + 1, seed)


def test_one_long_stream_does_not_keep_the_segments_of_all_that_came_and_went(tmp_path: Path) -> None:
    log = open_log(tmp_path, bytes_max=2 * MIB)
    stream = log.held(held(1))
    stream.progress(7, 8)
    stream.begin_epoch(epoch=4, held_nanos=500)
    unposted = log.held(held(2, stream=False))
    unposted.close(settle(held(2, stream=False)))
    for seed in range(10, 6_000):
        session = log.held(held(seed, stream=False))
        session.close(settle(held(seed, stream=False)))
        session.done()
        assert log.segment_count <= 4
        assert log.allocated_bytes <= 2 * MIB
    wait_until(lambda: len(list(log.path.glob("segment-*"))) < 12, "old segments are deleted")
    log.close()
    (left,) = abandoned(tmp_path)
    first, second = sorted(left.read().sessions, key=lambda session: session.state)
    assert first.settle == settle(held(2, stream=False))
    assert second.ref == held(1).ref
    assert [(hold.epoch, hold.held_nanos) for hold in second.holds] == [(3, 1_000_000_000), (4, 500)]
    assert (second.counted_tokens, second.uncounted_bytes) == (7, 8)


def test_a_close_stands_for_all_that_its_session_wrote_before(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    sessions = [log.held(held(seed)) for seed in range(30)]
    for seed in range(100, 100_000):
        log.held(held(seed, stream=False)).done()
        if log.segment_count == 2:
            break
    for seed, session in enumerate(sessions):
        session.close(settle(held(seed)))
    # Nobody needs the first segment any more, though nothing was copied and nobody is done.
    assert log.segment_count == 1
    log.close()
    (left,) = abandoned(tmp_path)
    assert [found.settle for found in left.read().sessions] == [settle(held(seed)) for seed in range(30)]


def test_many_long_streams_are_copied_forward_without_loss(tmp_path: Path) -> None:
    log = open_log(tmp_path, bytes_max=8 * MIB)
    streams = {}
    for seed in range(6_000):
        session = log.held(held(seed))
        if seed % 40 == 0:
            session.progress(seed + 1, 0)
            streams[session.ref.session_id] = seed + 1
        else:
            session.done()
    assert log.segment_count < 12
    log.close()
    (left,) = abandoned(tmp_path)
    assert {s.ref.session_id: s.counted_tokens for s in left.read().sessions} == streams


def test_more_streams_than_slots_grow_another_file_and_slots_are_used_again(tmp_path: Path) -> None:
    log = open_log(tmp_path, slots_per_file=8)
    sessions = [log.held(held(seed)) for seed in range(50)]
    for seed, session in enumerate(sessions):
        session.progress(seed + 1, 0)
    for session in sessions[:25]:
        session.done()
    # The slots of those that are done still show them; the new ones have said nothing yet.
    for seed in range(100, 125):
        log.held(held(seed))
    wait_until(lambda: bool(list(log.path.glob("slots-*"))), "slots")
    assert len(list(log.path.glob("slots-*"))) < 12
    log.close()
    (left,) = abandoned(tmp_path)
    counted = {session.ref.session_id: session.counted_tokens for session in left.read().sessions}
    assert counted == {
        **{held(seed).ref.session_id: seed + 1 for seed in range(25, 50)},
        **{held(seed).ref.session_id: 0 for seed in range(100, 125)},
    }


def test_a_usage_that_is_far_too_long_is_left_out_and_the_charge_is_the_same(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    session = log.held(held(1))
    session.close(with_usage(settle(held(1)), "x" * 100_000))
    log.close()
    (left,) = abandoned(tmp_path)
    (recovered,) = left.read().sessions
    assert recovered.settle is not None
    assert recovered.settle.record.usage_json == ""
    assert recovered.settle.record.flags == ("log_shortened",)
    assert recovered.settle.record.cost_nanos == settle(held(1)).record.cost_nanos


def test_facts_that_are_too_long_for_a_record_are_refused(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    with pytest.raises(LogUnavailable):
        log.held(held(1, model="m" * 10_000))
    log.close()


# --- sync --------------------------------------------------------------------------------------


def test_while_syncs_fail_new_sessions_are_refused_and_nothing_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log(tmp_path, sync_interval_ms=5)
    kept = log.held(held(1))
    real_sync = os.fdatasync

    def failing(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", failing)
    kept.progress(1, 0)
    wait_until(lambda: log.sync_errors > 1, "errors are counted")
    assert not log.is_healthy
    with pytest.raises(LogUnavailable):
        log.held(held(2))
    kept.progress(2, 0)
    kept.close(settle(held(1)))

    monkeypatch.setattr(os, "fdatasync", real_sync)
    wait_until(lambda: log.is_healthy, "one good sync heals")
    log.held(held(2))
    log.close()


def test_a_segment_is_deleted_only_after_what_was_copied_out_of_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log(tmp_path, sync_interval_ms=60_000)
    for seed in range(400):
        log.held(held(seed, stream=False)).done()
    assert log.segment_count == 1
    first = log.path / "segment-00000001"
    assert first.exists()
    log._worker.sync()
    assert not first.exists()
    log.close()


def test_nobody_waits_for_a_sync_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_sync = os.fdatasync

    def slow(fd: int) -> None:
        time.sleep(0.3)
        real_sync(fd)

    monkeypatch.setattr(os, "fdatasync", slow)
    log = open_log(tmp_path, sync_interval_ms=1)
    time.sleep(0.02)
    began_s = time.monotonic()
    for seed in range(100):
        session = log.held(held(seed))
        session.progress(1, 0)
        session.close(settle(held(seed)))
        session.done()
    assert time.monotonic() - began_s < 0.2
    wait_until(lambda: log.unsynced_ms > 100, "a slow disk shows")
    log.close()
