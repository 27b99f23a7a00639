"""What survives kill -9: everything that was acknowledged, however the process died."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from services.edge.session_log import abandoned
from services.edge.session_log.records import HELD, decode_held, scan_segment
from tests.unit.edge_session_log.samples import held
from tests.unit.edge_session_log.steps import Step, expected, found

pytestmark = pytest.mark.slow

KILLS = 50


def test_every_acknowledged_step_is_recovered_after_kill_9_at_any_point(tmp_path: Path) -> None:
    program = subprocess.run(
        [sys.executable, "-m", "tests.unit.edge_session_log.doomed_writers", str(tmp_path), "1", str(KILLS)],
        check=True,
        capture_output=True,
        timeout=100,
    )
    runs = [json.loads(line) for line in program.stdout.splitlines()]
    assert len(runs) == KILLS
    steps_seen = sessions_seen = segments_gone = copies_seen = 0
    for run in runs:
        assert run["signal"] == 9, run["seed"]
        lines = run["lines"]
        if not lines:
            continue
        path = Path(json.loads(lines[0])["path"])
        announced: list[Step] = [tuple(json.loads(line)) for line in lines[1:] if line != "ok"]
        acknowledged = announced[: lines.count("ok")]
        assert len(announced) - len(acknowledged) <= 1

        (left,) = abandoned(path.parent)
        log = left.read()
        assert left.path == path
        assert not log.is_damaged, run["seed"]
        # The step in flight was taken or was not; nothing in between.
        assert found(log) in (expected(acknowledged), expected(announced)), run["seed"]
        steps_seen += len(announced)
        sessions_seen += len(log.sessions)
        segments_gone += not (path / "segment-00000001").exists()
        copies_seen += copied_sessions(path, announced)
        left.remove()
        assert not path.exists()
    # The runs were long enough to use, copy and drop segments.
    assert steps_seen > 100 * KILLS
    assert sessions_seen > KILLS
    assert segments_gone > 1
    assert copies_seen > 5


def copied_sessions(path: Path, steps: list[Step]) -> int:
    """HELD records that are not where their sessions began."""
    born = [held(seed).ref.session_id for what, seed, _ in steps if what == "held"]
    records = [
        (record.number, born.index(decode_held(record.payload).ref.session_id))
        for segment in path.glob("segment-*")
        for record in scan_segment(segment.read_bytes()).records
        if record.kind == HELD
    ]
    order = [birth for _, birth in sorted(records)]
    return sum(later < earlier for earlier, later in pairwise(order))
