"""Settings are read once; every fault is told at the same time; secrets don't show."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from services.common.settings import Secret, SettingsError, read_settings, setting


@dataclass(frozen=True, kw_only=True)
class Example:
    port: int = setting("X_PORT", "The port.", default=1, minimum=1, maximum=65535)
    name: str = setting("X_NAME", "The name.")
    urls: tuple[str, ...] = setting("X_URLS", "Some addresses.", default=())
    flag: bool = setting("X_FLAG", "On or off.", default=False)
    secret: Secret = setting("X_SECRET", "A secret.", default=Secret(""))
    folder: Path | None = setting("X_FOLDER", "A folder.", default=None)


def test_values_are_read_with_their_types() -> None:
    example = read_settings(
        Example,
        {
            "X_PORT": "80",
            "X_NAME": "n",
            "X_URLS": "a, b,",
            "X_FLAG": "yes",
            "X_FOLDER": "/x",
            "X_SECRET": "s",
        },
    )
    assert example == Example(
        port=80, name="n", urls=("a", "b"), flag=True, folder=Path("/x"), secret=Secret("s")
    )


def test_all_faults_are_told_together() -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings(Example, {"X_PORT": "70000", "X_FLAG": "perhaps"})
    assert [fault.split(":")[0].split(" ")[0] for fault in caught.value.faults] == [
        "X_PORT",
        "X_NAME",
        "X_FLAG",
    ]


def test_an_empty_variable_counts_as_not_set() -> None:
    assert read_settings(Example, {"X_NAME": "n", "X_PORT": ""}).port == 1


def test_a_secret_may_come_from_a_file_and_never_shows_itself(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("hush\n")
    example = read_settings(Example, {"X_NAME": "n", "X_SECRET_FILE": str(file)})
    assert example.secret.value == "hush"
    assert "hush" not in f"{example!r} {example.secret}"
