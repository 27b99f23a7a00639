"""Run as a program: starts writers one after another, kills each with SIGKILL at a random point, and prints
a JSON line for each: its directory and the steps it had announced and acknowledged.

    python -m tests.unit.edge_session_log.doomed_writers ROOT FIRST_SEED COUNT
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from services.edge.session_log import SessionLog
from tests.unit.edge_session_log.samples import open_log
from tests.unit.edge_session_log.steps import Steps, Walk


def write_until_killed(root: Path, seed: int, pipe: int) -> None:
    log: SessionLog = open_log(root, sync_interval_ms=2, slots_per_file=8)
    os.write(pipe, (json.dumps({"path": str(log.path)}) + "\n").encode())
    steps, walk = Steps(seed), Walk(log)
    while True:
        step = steps.next()
        os.write(pipe, (json.dumps(step) + "\n").encode())
        walk.take(step)
        os.write(pipe, b"ok\n")


def kill_one(root: Path, seed: int) -> dict[str, object]:
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        try:
            write_until_killed(root, seed, writer)
        finally:
            os._exit(1)
    os.close(writer)
    chance = random.Random(seed)
    bytes_wanted = chance.randrange(10, 20_000 if seed % 4 else 150_000)
    data = b""
    while len(data) < bytes_wanted and (part := os.read(reader, 4_096)):
        data += part
    time.sleep(chance.random() / 2_000)
    os.kill(pid, signal.SIGKILL)
    while part := os.read(reader, 65_536):
        data += part
    _, status = os.waitpid(pid, 0)
    lines = data.decode().split("\n")[:-1]
    return {"signal": os.WTERMSIG(status), "lines": lines}


def main() -> None:
    root, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    for seed in range(first, first + count):
        print(json.dumps({"seed": seed, **kill_one(root / str(seed), seed)}), flush=True)


if __name__ == "__main__":
    main()
