"""CPU and memory of a group of processes, from /proc.

A group is some processes and everything below them: Postgres starts a process for each connection. The CPU of
those that have ended is in their parent's figures, so a group's sum never goes down.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")


@dataclass(frozen=True)
class ProcessStat:
    """What we read of /proc/<pid>/stat. `cpu_ticks` includes all threads and all children that have ended."""

    pid: int
    name: str
    parent_pid: int
    cpu_ticks: int


def parse_stat(text: str) -> ProcessStat:
    """`text`: /proc/<pid>/stat. The name is in brackets and may itself hold brackets and spaces."""
    head, _, tail = text.rpartition(")")
    pid, _, name = head.partition("(")
    fields = tail.split()
    return ProcessStat(
        pid=int(pid), name=name, parent_pid=int(fields[1]), cpu_ticks=sum(map(int, fields[11:15]))
    )


def parse_smaps_rollup(text: str) -> int:
    """The proportional set size in KiB: private pages, and of each shared page this process's part."""
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise ValueError("no Pss in smaps_rollup")


def parse_cpu_line(text: str) -> int:
    """Ticks that all cores together were busy, from /proc/stat: user, nice, system, irq, softirq, steal."""
    fields = text.splitlines()[0].split()
    if fields[0] != "cpu":
        raise ValueError("no cpu line in /proc/stat")
    user, nice, system, _idle, _iowait, *rest = (int(field) for field in fields[1:9])
    return user + nice + system + sum(rest)


def with_descendants(roots: Iterable[int], parents: Mapping[int, int]) -> set[int]:
    """`roots` and everything below them; `parents`: pid -> parent's pid."""
    found = set(roots)
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    waiting = list(found)
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found


def read_processes() -> dict[int, ProcessStat]:
    """All processes of this machine; those that end meanwhile are left out."""
    found: dict[int, ProcessStat] = {}
    for entry in os.listdir(PROC):
        if entry.isdigit():
            try:
                stat = parse_stat((PROC / entry / "stat").read_text(errors="replace"))
            except OSError:
                continue
            found[stat.pid] = stat
    return found


def cpu_seconds_by_name(roots: Iterable[int], names: Mapping[int, str] | None = None) -> dict[str, float]:
    """CPU seconds of the group so far, by `names`: a root's pid -> what it and its children count under."""
    processes = read_processes()
    parents = {pid: stat.parent_pid for pid, stat in processes.items()}
    sums: dict[str, float] = {}
    for pid in with_descendants(roots, parents) & processes.keys():
        name = _named_ancestor(pid, parents, names or {}) or "other"
        sums[name] = sums.get(name, 0.0) + processes[pid].cpu_ticks / TICKS_PER_SECOND
    return sums


def _named_ancestor(pid: int, parents: Mapping[int, int], names: Mapping[int, str]) -> str | None:
    while pid and pid not in names:
        pid = parents.get(pid, 0)
    return names.get(pid)


def memory_kib(roots: Iterable[int]) -> int:
    """The group's proportional set size. Processes that end meanwhile are left out."""
    processes = read_processes()
    parents = {pid: stat.parent_pid for pid, stat in processes.items()}
    sum_kib = 0
    for pid in with_descendants(roots, parents) & processes.keys():
        try:
            rollup = (PROC / str(pid) / "smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if rollup:
            sum_kib += parse_smaps_rollup(rollup)
    return sum_kib


def machine_busy_seconds() -> float:
    """CPU seconds of all processes of this machine so far."""
    return parse_cpu_line((PROC / "stat").read_text()) / TICKS_PER_SECOND
