import os
import subprocess
import sys

import pytest

from tests.bench.procfs import (
    ProcessStat,
    cpu_seconds_by_name,
    memory_kib,
    parse_cpu_line,
    parse_smaps_rollup,
    parse_stat,
    with_descendants,
)

_STAT = "4242 (postgres: (a) b) S 17 4242 4242 0 -1 4194560 1533 81 0 0 11 22 33 44 20 0 3 0 9134 2294 100"
_BURN = "sum(i * i for i in range(6_000_000))"


def test_a_process_name_may_hold_brackets_and_spaces() -> None:
    assert parse_stat(_STAT) == ProcessStat(
        pid=4242, name="postgres: (a) b", parent_pid=17, cpu_ticks=11 + 22 + 33 + 44
    )


def test_memory_is_the_proportional_set_size() -> None:
    assert parse_smaps_rollup("00400000-7ffe ---p 0 00:00 0 [rollup]\nRss: 900 kB\nPss: 512 kB\n") == 512
    with pytest.raises(ValueError, match="Pss"):
        parse_smaps_rollup("Rss: 900 kB\n")


def test_waiting_for_a_disk_is_not_being_busy() -> None:
    assert parse_cpu_line("cpu  10 20 30 4000 5000 1 2 3 0 0\ncpu0 1 1 1 1\n") == 10 + 20 + 30 + 1 + 2 + 3


def test_a_group_is_everything_below_its_roots() -> None:
    parents = {2: 1, 3: 2, 4: 3, 5: 1, 6: 5}
    assert with_descendants([2], parents) == {2, 3, 4}
    assert with_descendants([2, 5], parents) == {2, 3, 4, 5, 6}


def test_the_cpu_of_children_that_have_ended_counts_for_their_root() -> None:
    before = cpu_seconds_by_name([os.getpid()], {os.getpid(): "us"})["us"]
    subprocess.run([sys.executable, "-c", _BURN], check=True)
    assert cpu_seconds_by_name([os.getpid()], {os.getpid(): "us"})["us"] - before >= 0.1


def test_memory_of_a_living_process_is_seen() -> None:
    assert memory_kib([os.getpid()]) > 1_000
