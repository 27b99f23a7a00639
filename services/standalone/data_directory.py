"""The data directory of `meterway up`: locked by one start at a time, keeper of the secrets of its first."""

import base64
import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from services.standalone.store_place import make_directory

_LOCK_FILE = "lock"
_SECRETS_FOLDER = "secrets"
_SECRET_CHARACTERS_MIN = 16


class DataDirectoryError(Exception):
    """A data directory cannot be used; the message says what to do."""


class DataDirectoryInUseError(DataDirectoryError):
    """Another start holds the lock."""

    def __init__(self, path: Path, holder_pid: int | None) -> None:
        self.holder_pid = holder_pid
        holder = f"process {holder_pid}" if holder_pid else "another process"
        super().__init__(
            f"{path} is in use by {holder}: stop it first, or choose another folder with --data-dir"
        )


@dataclass(frozen=True, slots=True)
class StandaloneSecrets:
    """What the services of one data directory share; made once, on its first start."""

    internal_credential: str = field(repr=False)
    operator_token: str = field(repr=False)
    encryption_key: str = field(repr=False)
    """32 random bytes, base64 for URLs."""
    admin_password: str = field(repr=False)


class DataDirectory:
    """An open, locked data directory. Closing it lets go of the lock; when we are killed, the kernel does."""

    def __init__(self, path: Path, secrets_: StandaloneSecrets, lock_descriptor: int) -> None:
        self.path = path
        self.secrets = secrets_
        self._lock_descriptor: int | None = lock_descriptor

    @classmethod
    def open(cls, path: Path) -> Self:
        """Make the folder if it isn't there, lock it, make its secrets if it has none.

        Raises DataDirectoryInUseError, or DataDirectoryError when the folder cannot be used.
        """
        path = path.expanduser().absolute()
        try:
            make_directory(path)
            descriptor = _lock(path)
        except OSError as error:
            raise DataDirectoryError(
                f"cannot use {path} as data directory: {error.strerror}. Choose another with --data-dir"
            ) from error
        try:
            return cls(path, _make_secrets(path / _SECRETS_FOLDER), descriptor)
        except OSError as error:
            os.close(descriptor)
            raise DataDirectoryError(
                f"cannot keep secrets in {path}: {error.strerror}. Start as the user it belongs to"
            ) from error
        except BaseException:
            os.close(descriptor)
            raise

    @property
    def postgres_home(self) -> Path:
        return self.path / "postgres"

    @property
    def redis_home(self) -> Path:
        return self.path / "redis"

    def close(self) -> None:
        if self._lock_descriptor is not None:
            os.close(self._lock_descriptor)
            self._lock_descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_secrets(path: Path) -> StandaloneSecrets:
    """The secrets of a data directory that another process holds open, for commands to its services.

    Raises DataDirectoryError when there are none.
    """
    folder = path.expanduser().absolute() / _SECRETS_FOLDER
    try:
        return StandaloneSecrets(
            internal_credential=_read_secret(folder / "internal-credential"),
            operator_token=_read_secret(folder / "operator-token"),
            encryption_key=_read_secret(folder / "encryption-key"),
            admin_password=_read_secret(folder / "admin-password"),
        )
    except FileNotFoundError:
        raise DataDirectoryError(
            f"{path} is not a data directory of Meterway: "
            f"start one there first (meterway up --data-dir {path})"
        ) from None
    except OSError as error:
        raise DataDirectoryError(
            f"cannot read the secrets of {path}: {error.strerror}. Ask as the user it belongs to"
        ) from error


def read_or_make_secret(file: Path, make: Callable[[], str] = lambda: secrets.token_urlsafe(32)) -> str:
    """The secret in `file`; made and kept there, mode 0600, if there is none.

    Raises DataDirectoryError when the file is damaged.
    """
    with contextlib.suppress(FileNotFoundError):
        return _read_secret(file)
    secret = make()
    replace_file(file, f"{secret}\n", mode=0o600)
    return secret


def replace_file(file: Path, text: str, *, mode: int) -> None:
    """Write a whole file or nothing, also when we are killed meanwhile."""
    unfinished = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(file)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _lock(path: Path) -> int:
    descriptor = os.open(path / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise DataDirectoryInUseError(path, int(holder) if holder.isdecimal() else None) from None
    except BaseException:
        os.close(descriptor)
        raise
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _make_secrets(folder: Path) -> StandaloneSecrets:
    folder.mkdir(mode=0o700, exist_ok=True)
    return StandaloneSecrets(
        internal_credential=read_or_make_secret(folder / "internal-credential"),
        operator_token=read_or_make_secret(folder / "operator-token"),
        encryption_key=read_or_make_secret(folder / "encryption-key", _new_encryption_key),
        admin_password=read_or_make_secret(folder / "admin-password", lambda: secrets.token_urlsafe(18)),
    )


def _new_encryption_key() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


def _read_secret(file: Path) -> str:
    secret = file.read_text().strip()
    if len(secret) < _SECRET_CHARACTERS_MIN:
        raise DataDirectoryError(f"{file} is damaged: put back the secret it held from a backup")
    return secret
