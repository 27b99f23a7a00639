"""Settings from the environment: one frozen dataclass per service, read once, all faults reported together.

    @dataclass(frozen=True, kw_only=True)
    class MeterSettings:
        ledger_url: str = setting("METERWAY_LEDGER_URL", "The ledger's internal address.")
        lease_ms: int = setting("METERWAY_LEASE_MS", "How long a grant lasts.", default=60_000)

    settings = read_settings(MeterSettings, os.environ)

A value may also come from a file: `NAME_FILE=/run/secrets/x` is read when `NAME` isn't set.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

T = TypeVar("T")
_REQUIRED: Final = dataclasses.MISSING


class SettingsError(Exception):
    """The environment's settings are not valid. `faults` lists every fault, a sentence each."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        super().__init__("Settings are not valid:\n  " + "\n  ".join(faults))


@dataclasses.dataclass(frozen=True)
class Secret:
    """A string that doesn't show itself."""

    value: str

    def __repr__(self) -> str:
        return "<secret>"

    __str__ = __repr__

    def __bool__(self) -> bool:
        return bool(self.value)


def setting(
    name: str,
    help_text: str,
    *,
    default: Any = _REQUIRED,
    minimum: int | None = None,
    maximum: int | None = None,
) -> Any:
    """A dataclass field that `read_settings` fills from the environment variable `name`."""
    metadata = {"name": name, "help": help_text, "minimum": minimum, "maximum": maximum}
    if default is _REQUIRED:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def read_settings(cls: type[T], environ: Mapping[str, str]) -> T:
    """Build `cls` from `environ`. Raises SettingsError with every fault."""
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    faults: list[str] = []
    for field in dataclasses.fields(typing.cast("Any", cls)):
        name = field.metadata["name"]
        try:
            text = _lookup(name, environ)
            if text is not None:
                values[field.name] = _parse(text, hints[field.name], field.metadata)
            elif field.default is _REQUIRED:
                faults.append(f"{name} is not set: {field.metadata['help']}")
        except (ValueError, OSError) as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise SettingsError(faults)
    return cls(**values)


def _lookup(name: str, environ: Mapping[str, str]) -> str | None:
    text = environ.get(name)
    if text:
        return text
    file = environ.get(f"{name}_FILE")
    return Path(file).read_text(encoding="utf-8").strip() if file else None


def _parse(text: str, hint: Any, metadata: Mapping[str, Any]) -> Any:
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
        origin = typing.get_origin(hint)
    if origin is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if hint is bool:
        if text.lower() not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
            raise ValueError(f"{text!r} is neither true nor false")
        return text.lower() in ("1", "true", "yes", "on")
    if hint is int:
        return _parse_int(text, metadata["minimum"], metadata["maximum"])
    if hint in (Secret, Path):
        return hint(text)
    return text


def _parse_int(text: str, minimum: int | None, maximum: int | None) -> int:
    try:
        value = int(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a whole number") from error
    if (minimum is not None and value < minimum) or (maximum is not None and value > maximum):
        raise ValueError(f"{value} is not between {minimum} and {maximum}")
    return value
