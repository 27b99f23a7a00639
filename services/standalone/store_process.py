"""The process of an embedded store: started in our process group, watched, stopped within a bound.

Not bound to an event loop: a store started in one loop may be awaited or stopped in another.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from services.standalone.store_place import RunAs, StoreError

# A signal and how long it may take to end the process.
Ladder = Sequence[tuple[signal.Signals, float]]

_POLL_SECONDS = 0.01
_LOG_BYTES_MAX = 8 * 1024 * 1024
_LOG_TAIL_BYTES = 4096
# Nothing of our own environment reaches a store: PGPORT and its like would change what it does.
_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin", "TZ": "UTC"}


class StoreProcess:
    """One run of a store's server, its output appended to `log_file`."""

    def __init__(self, arguments: Sequence[str], *, run_as: RunAs | None, log_file: Path) -> None:
        """Start the server. Raises StoreError when it cannot be run."""
        self._log_file = log_file
        _keep_log_small(log_file)
        with log_file.open("ab") as log:
            log_file.chmod(0o600)
            self._log_start_bytes = log.seek(0, os.SEEK_END)
            self._process = _spawn(arguments, run_as=run_as, stdin=subprocess.DEVNULL, output=log)

    @property
    def pid(self) -> int:
        return self._process.pid

    def returncode(self) -> int | None:
        """None while the process runs."""
        return self._process.poll()

    async def wait(self) -> int:
        """Return the exit code (negative: the signal that ended it) when the process has ended."""
        return await wait_for_exit(self._process)

    async def stop(self, ladder: Ladder) -> int:
        """Send each signal of `ladder` and give it its seconds; then SIGKILL. Returns the exit code."""
        for signal_number, seconds_max in ladder:
            if self._process.poll() is not None:
                break
            self._process.send_signal(signal_number)
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(self.wait(), seconds_max)
        self.kill()
        return await self.wait()

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()

    def log_tail(self) -> str:
        """The end of what this run wrote."""
        with self._log_file.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start_bytes, end - _LOG_TAIL_BYTES))
            return log.read(_LOG_TAIL_BYTES).decode(errors="replace").strip()


async def run_tool(
    arguments: Sequence[str],
    *,
    run_as: RunAs | None,
    timeout_seconds: float,
    stdin: str = "",
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a store's tool to its end, return its output. Raises StoreError when it fails or takes too long."""
    name = Path(arguments[0]).name
    process = _spawn(
        arguments,
        run_as=run_as,
        stdin=subprocess.PIPE,
        output=subprocess.PIPE,
        environment=environment,
    )
    try:
        output, _ = await asyncio.to_thread(process.communicate, stdin.encode(), timeout_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise StoreError(f"{name} was not done after {timeout_seconds:g} s") from None
    except BaseException:
        # The thread then sees the end of the output, and reaps.
        process.kill()
        raise
    text: str = output.decode(errors="replace").strip()
    if process.returncode != 0:
        raise StoreError(f"{name} failed with exit code {process.returncode}: {text[-_LOG_TAIL_BYTES:]}")
    return text


def find_processes(matches: Callable[[list[str]], bool], *, user_id: int) -> list[int]:
    """Processes of `user_id` whose command line `matches`; none where there is no /proc."""
    return [
        int(entry)
        for entry in _process_entries()
        if (arguments := command_line(int(entry), user_id=user_id)) is not None and matches(arguments)
    ]


def command_line(pid: int, *, user_id: int | None = None) -> list[str] | None:
    """The arguments of a living process, None for none, a zombie, or one that isn't of `user_id`."""
    folder = Path(f"/proc/{pid}")
    try:
        if user_id is not None and folder.stat().st_uid != user_id:
            return None
        arguments = (folder / "cmdline").read_bytes()
    except OSError:
        return None
    return (
        [part.decode(errors="replace") for part in arguments.rstrip(b"\0").split(b"\0")]
        if arguments
        else None
    )


def is_zombie(pid: int) -> bool:
    """Whether the process has ended, and let go of all it held, but its parent has not noticed."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    # The state follows the name, which is in brackets and may hold any character.
    return facts.rpartition(")")[2].split()[0] in ("Z", "X")


async def end_previous(
    matches: Callable[[list[str]], bool],
    *,
    user_id: int,
    ladder: Sequence[tuple[signal.Signals | None, float]],
) -> bool:
    """End what an earlier start of ours left running, and return whether there was any.

    A None in `ladder` just waits. Raises StoreError when it outlives the ladder.
    """
    found = find_processes(matches, user_id=user_id)
    if not found:
        return False
    for signal_number, seconds_max in ladder:
        if signal_number is not None:
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal_number)
        give_up_at = time.monotonic() + seconds_max
        while time.monotonic() < give_up_at:
            found = find_processes(matches, user_id=user_id)
            if not found:
                return True
            await asyncio.sleep(_POLL_SECONDS)
    raise StoreError(f"a store of an earlier start does not end: stop the processes {found} and start again")


def _process_entries() -> list[str]:
    try:
        return [entry for entry in os.listdir("/proc") if entry.isdecimal() and int(entry) != os.getpid()]
    except FileNotFoundError:
        return []


def _keep_log_small(log_file: Path) -> None:
    if log_file.exists() and log_file.stat().st_size > _LOG_BYTES_MAX:
        log_file.replace(log_file.with_suffix(".log.1"))


def _spawn(
    arguments: Sequence[str],
    *,
    run_as: RunAs | None,
    stdin: int,
    output: int | IO[bytes],
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    # Ctrl-C reaches the whole process group; a store is stopped by its supervisor, after those that use it.
    # (Postgres unblocks the signal again.)
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return subprocess.Popen(  # noqa: S603 - arguments are our own
            arguments,
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            # The store's user may not be able to enter ours.
            cwd="/",
            env={**_ENVIRONMENT, **(environment or {})},
            umask=0o077,
            user=run_as.user_id if run_as else None,
            group=run_as.group_id if run_as else None,
            extra_groups=[] if run_as else None,
        )
    except OSError as error:
        raise StoreError(f"cannot run {arguments[0]}: {error.strerror}") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)


async def wait_for_exit(process: subprocess.Popen[bytes]) -> int:
    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        # No such call here, or the process is gone already.
        while (returncode := process.poll()) is None:  # noqa: ASYNC110 - nothing tells us
            await asyncio.sleep(_POLL_SECONDS)
        return returncode
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        if process.poll() is None:
            await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return process.wait()
