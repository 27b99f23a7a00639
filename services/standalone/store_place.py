"""Where an embedded store keeps its data and binaries, and as which user it runs.

An ordinary user's store runs as that user, in its home folder. Root's store runs as the owner of its data, at
first `nobody`. `nobody` cannot enter folders below a closed one: then data and binaries are kept below
`SHARED_ROOT`, the place is written down in the home folder, and the progress output says so. No folder of the
user is ever opened up.
"""

import hashlib
import importlib.util
import os
import pwd
import secrets
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Progress = Callable[[str], None]

SHARED_ROOT = Path("/var/lib/meterway")
_LOCATION_FILE = "data-location"
_DATA_FOLDER = "data"
_EARLIER_MAX = 1000


class StoreError(Exception):
    """An embedded store cannot be started or asked; the message says what to do."""


@dataclass(frozen=True, slots=True)
class RunAs:
    """The user a store runs as when we are root."""

    user_id: int
    group_id: int


@dataclass(frozen=True, slots=True)
class StorePlace:
    """A folder of mode 0700 that belongs to the store's user; `run_as` is None for the user we are."""

    directory: Path
    run_as: RunAs | None


def make_directory(directory: Path) -> None:
    """Make `directory` closed to others. Root's can be walked through: its stores run as `nobody`."""
    if directory.is_dir():
        return
    directory.mkdir(parents=True)
    # mkdir's own mode is subject to the umask.
    directory.chmod(0o711 if os.geteuid() == 0 else 0o700)


def place_data(home: Path, *, shared_root: Path, progress: Progress) -> StorePlace:
    """Find or make the folder of a store's data. Raises StoreError when it belongs to someone else."""
    make_directory(home)
    location_file = home / _LOCATION_FILE
    is_elsewhere = location_file.exists()
    directory = Path(location_file.read_text().strip()) if is_elsewhere else home.resolve() / _DATA_FOLDER
    if is_elsewhere and not _exists(directory):
        raise StoreError(f"{directory}, which {location_file} names, is gone: put it back, or remove {home}")
    if os.geteuid() != 0:
        return StorePlace(_own_directory(directory), None)

    run_as = _user_of(directory)
    had_data = directory.is_dir() and any(directory.iterdir())
    _make_for(directory, run_as)
    if _may_use(run_as, directory):
        return StorePlace(directory, run_as)
    if is_elsewhere or had_data:
        user = _user_name(run_as.user_id)
        raise StoreError(
            f"{directory} holds a store's data, but its user {user} cannot enter it: "
            f"let {user} enter the folders above it (chmod o+x)"
        )
    directory.rmdir()
    return _place_elsewhere(home, run_as, shared_root=shared_root, progress=progress)


def place_binaries(
    folders: Sequence[Path],
    *,
    probes: Sequence[Path],
    run_as: RunAs | None,
    shared_root: Path,
    progress: Progress,
) -> Path:
    """Return the parent of `folders` (all share one), or of a copy of them that the store's user can run.

    `probes` are files below `folders` that the user must be able to read; the first of them keys the copy.
    """
    parent = folders[0].parent
    if run_as is None or _may_read(run_as, probes):
        return parent
    facts = probes[0].stat()
    key = hashlib.sha256(f"{parent}\n{facts.st_size}\n{facts.st_mtime_ns}".encode()).hexdigest()[:16]
    target = shared_root / f"{folders[0].name}-{key}"
    if target.is_dir():
        return target
    progress(f"{_user_name(run_as.user_id)} cannot enter {parent}: copying {folders[0].name} to {target}")
    _make_shared_root(shared_root)
    unfinished = shared_root / f".{target.name}.{secrets.token_hex(4)}"
    try:
        for folder in folders:
            ignore = shutil.ignore_patterns("include", "__pycache__")
            shutil.copytree(folder, unfinished / folder.name, symlinks=True, ignore=ignore)
        _open_for_reading(unfinished)
        unfinished.rename(target)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        # Another start of ours may have put the same copy there first.
        if not target.is_dir():
            raise StoreError(f"cannot copy the store's binaries to {target}: {str(error)[:200]}") from error
    return target


def find_package(names: tuple[str, ...]) -> Path:
    """The folder of the first package that is installed, unimported. Raises StoreError when none is."""
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            return Path(next(iter(spec.submodule_search_locations)))
    raise StoreError(f"the package {names[0].replace('_', '-')} is not installed: run `make setup`")


def _place_elsewhere(home: Path, run_as: RunAs, *, shared_root: Path, progress: Progress) -> StorePlace:
    _make_shared_root(shared_root)
    user = _user_name(run_as.user_id)
    key = hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:16]
    directory = shared_root / f"{home.name}-{key}"
    for number in range(2, _EARLIER_MAX):
        if not directory.exists():
            break
        # Data of an earlier home at this path, which was removed with its passwords.
        progress(f"{directory} holds data of an earlier {home}: it is left alone")
        directory = shared_root / f"{home.name}-{key}-{number}"
    _make_for(directory, run_as)
    if not _may_use(run_as, directory):
        raise StoreError(
            f"the user {user} can enter neither {home} nor {directory}: "
            "choose a data directory outside closed folders, or start as an ordinary user"
        )
    unfinished = home / f".{_LOCATION_FILE}"
    unfinished.write_text(f"{directory}\n")
    unfinished.replace(home / _LOCATION_FILE)
    progress(f"{user} cannot enter {home}: the data of {home.name} is kept in {directory}")
    return StorePlace(directory, run_as)


def _own_directory(directory: Path) -> Path:
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        owner = directory.stat().st_uid
    except OSError as error:
        raise StoreError(
            f"cannot use {directory}: {error.strerror}. Start as the user it belongs to"
        ) from error
    if owner != os.geteuid():
        raise StoreError(f"{directory} belongs to {_user_name(owner)}: start as that user, or as root")
    return directory


def _user_of(directory: Path) -> RunAs:
    """The owner of the data that is there, else `nobody`."""
    if directory.is_dir():
        facts = directory.stat()
        if facts.st_uid != 0:
            return RunAs(facts.st_uid, facts.st_gid)
        if any(directory.iterdir()):
            raise StoreError(
                f"{directory} belongs to root, and no store runs as root: give it to the user it ran as "
                f"(chown -R nobody: {directory})"
            )
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError as error:
        raise StoreError("this machine has no user `nobody`: start as an ordinary user") from error
    return RunAs(nobody.pw_uid, nobody.pw_gid)


def _make_for(directory: Path, run_as: RunAs) -> None:
    directory.mkdir(mode=0o700, exist_ok=True)
    os.chown(directory, run_as.user_id, run_as.group_id, follow_symlinks=False)


def _make_shared_root(shared_root: Path) -> None:
    if shared_root.is_dir():
        return
    # Renamed into place when it is open, since both stores may be started at once.
    unfinished = shared_root.with_name(f".{shared_root.name}.{secrets.token_hex(4)}")
    try:
        unfinished.mkdir(parents=True)
        unfinished.chmod(0o755)
        unfinished.rename(shared_root)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if shared_root.is_dir():
            return
        raise StoreError(f"cannot make {shared_root}: {error.strerror}. Start as an ordinary user") from error


def _open_for_reading(root: Path) -> None:
    for path in [root, *root.rglob("*")]:
        if not path.is_symlink():
            is_runnable = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(0o755 if is_runnable else 0o644)


def _may_read(run_as: RunAs, files: Sequence[Path]) -> bool:
    return _passes(run_as, 'for file; do test -r "$file" || exit 1; done', files)


def _may_use(run_as: RunAs, directory: Path) -> bool:
    return _passes(run_as, 'test -w "$1" && test -x "$1"', [directory])


def _passes(run_as: RunAs, script: str, paths: Sequence[Path]) -> bool:
    # Asking the kernel as that user is right also for access lists, which mode bits do not show.
    return (
        subprocess.run(  # noqa: S603 - our own script
            ["/bin/sh", "-c", script, "sh", *map(str, paths)],
            user=run_as.user_id,
            group=run_as.group_id,
            extra_groups=[],
            cwd="/",
            env={},
            check=False,
            timeout=10,
        ).returncode
        == 0
    )


def _exists(directory: Path) -> bool:
    try:
        return directory.is_dir()
    except PermissionError:
        return True


def _user_name(user_id: int) -> str:
    try:
        return pwd.getpwuid(user_id).pw_name
    except KeyError:
        return f"user {user_id}"
