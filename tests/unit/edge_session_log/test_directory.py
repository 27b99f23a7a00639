"""Whose directory is whose, and what outlives it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from services.common.ids import EdgeId
from services.edge.session_log import LogUnavailable, SessionLog, abandoned
from tests.unit.edge_session_log.samples import EDGE, held, open_log, settle

OWNER = """
import sys, time
from pathlib import Path
from tests.unit.edge_session_log.samples import held, open_log

log = open_log(Path(sys.argv[1]))
log.held(held(77))
print(log.path, flush=True)
time.sleep(60)
"""


def start_owner(root: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", OWNER, str(root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_two_processes_never_have_one_directory_and_a_dead_one_leaves_it_to_the_other(tmp_path: Path) -> None:
    process, theirs = start_owner(tmp_path)
    try:
        log = open_log(tmp_path)
        assert log.path != theirs
        assert log.path.parent == theirs.parent
        assert abandoned(tmp_path) == []
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    (left,) = abandoned(tmp_path)
    assert left.path == theirs
    assert [session.ref for session in left.read().sessions] == [held(77).ref]
    # Locked for whoever found it, until it is shipped or left.
    assert abandoned(tmp_path) == []
    left.unlock()
    (again,) = abandoned(tmp_path)
    again.remove()
    assert not theirs.exists()
    assert abandoned(tmp_path) == []
    log.close()


def test_an_edge_that_starts_again_leaves_its_former_sessions_to_be_shipped(tmp_path: Path) -> None:
    first = open_log(tmp_path)
    first.held(held(1))
    first.close()
    second = open_log(tmp_path)
    assert second.path != first.path
    assert list(second.unposted()) == []
    (left,) = abandoned(tmp_path)
    assert left.path == first.path
    left.remove()
    second.close()
    third = open_log(tmp_path)
    assert third.path == first.path
    third.close()


def test_a_log_in_which_all_is_done_leaves_nothing_behind(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    session = log.held(held(1))
    session.close(settle(held(1)))
    session.done()
    log.close()
    assert not log.path.exists()
    assert abandoned(tmp_path) == []


def test_any_edge_id_is_a_directory_below_the_root(tmp_path: Path) -> None:
    for edge_id in ("a/b", "..", ".", "über host", "/etc"):
        log = SessionLog.open(tmp_path, EdgeId(edge_id), segment_bytes=64 * 1024)
        assert log.path.parent == tmp_path
        log.close()


def test_bounds_that_leave_no_room_are_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="room"):
        SessionLog.open(tmp_path, EDGE, segment_bytes=MIB, bytes_max=2 * MIB)
    with pytest.raises(ValueError, match="room"):
        SessionLog.open(tmp_path, EDGE, segment_bytes=4_096)


MIB = 1024 * 1024


def test_the_log_lists_what_is_running_or_not_posted_yet(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    running, closed, gone = (log.held(held(seed)) for seed in (1, 2, 3))
    running.begin_epoch(epoch=9, held_nanos=40)
    closed.close(settle(held(2)))
    gone.done()
    listed = {session.ref.session_id: session for session in log.unposted()}
    assert set(listed) == {running.ref.session_id, closed.ref.session_id}
    assert listed[closed.ref.session_id].is_closed
    assert [(hold.epoch, hold.held_nanos) for hold in running.holds] == [(3, 1_000_000_000), (9, 40)]
    assert running.held_nanos == 1_000_000_040
    log.done(held(99).ref.session_id)
    log.close()


def test_a_second_close_changes_nothing(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    session = log.held(held(1))
    session.close(settle(held(1), output=5))
    session.close(settle(held(1), output=500))
    log.close()
    (left,) = abandoned(tmp_path)
    assert [found.settle for found in left.read().sessions] == [settle(held(1), output=5)]


def test_a_session_cannot_be_logged_twice_or_go_back_to_an_older_epoch(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    session = log.held(held(1))
    with pytest.raises(ValueError, match="already"):
        log.held(held(1))
    with pytest.raises(ValueError, match="follow"):
        session.begin_epoch(epoch=3, held_nanos=1)
    log.close()


def test_a_recovered_sessions_next_call_is_above_any_that_its_process_can_have_made(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    stream, plain = log.held(held(1)), log.held(held(2, stream=False))
    stream.sent_upstream()
    stream.extended(seq=41, held_nanos=stream.held_nanos)
    plain.extended(seq=9, held_nanos=plain.held_nanos)
    log.close()
    (left,) = abandoned(tmp_path)
    by_id = {session.ref.session_id: session for session in left.read().sessions}
    assert by_id[stream.ref.session_id].next_seq == 1_000_041
    assert by_id[stream.ref.session_id].flags == 1
    assert by_id[plain.ref.session_id].next_seq == 1_000_001
    left.remove()


# --- promises ----------------------------------------------------------------------------------


def test_a_promise_outlives_the_process_and_its_directory(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.promise({7: 5, 200: 1})
    assert not log.promises.accepts(7, 4)
    assert log.promises.accepts(7, 5)
    assert log.promises.accepts(8, 0)
    log.close()
    assert not log.path.exists()
    again = open_log(tmp_path)
    assert again.promises.epochs == {7: 5, 200: 1}
    again.close()


def test_a_hold_of_an_epoch_older_than_promised_is_refused_however_late_it_comes(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.held(held(1, epoch=3))
    log.promise({7: 4})
    with pytest.raises(LogUnavailable):
        log.held(held(2, epoch=3))
    log.held(held(3, epoch=4))
    assert [session.ref.epoch for session in log.unposted()] == [3, 4]
    log.close()


def test_promises_of_several_edges_of_one_volume_never_take_one_another_back(tmp_path: Path) -> None:
    first, second = open_log(tmp_path), open_log(tmp_path)
    first.promise({1: 10, 2: 3})
    second.promise({1: 4, 3: 6})
    assert second.promises.epochs == {1: 10, 2: 3, 3: 6}
    first.promise({2: 2})
    assert first.promises.epochs == {1: 10, 2: 3, 3: 6}
    first.close()
    second.close()


def test_a_promise_that_was_being_written_is_not_made_and_the_former_ones_stand(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.promise({1: 10})
    (tmp_path / "promises.new").write_bytes(b"\x01\x02")
    log.close()
    again = open_log(tmp_path)
    assert again.promises.epochs == {1: 10}
    assert not again.promises.is_damaged
    again.promise({1: 11})
    again.close()
    third = open_log(tmp_path)
    assert third.promises.epochs == {1: 11}
    third.close()


def test_promises_with_a_turned_bit_are_not_believed_and_the_edge_is_told(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.promise({1: 10})
    log.close()
    file = tmp_path / "promises"
    data = bytearray(file.read_bytes())
    data[-1] ^= 4
    file.write_bytes(bytes(data))
    again = open_log(tmp_path)
    assert again.promises.is_damaged
    assert again.promises.epochs == {}
    again.close()
