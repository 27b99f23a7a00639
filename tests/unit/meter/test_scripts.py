"""The Lua files keep to their rules."""

import re
from importlib.resources import files

import pytest

from services.meter.scripts import VERBS, load_scripts

FOLDER = files("services.meter.lua")


def test_every_file_is_a_verb_and_every_verb_has_a_file() -> None:
    names = {entry.name.removesuffix(".lua") for entry in FOLDER.iterdir() if entry.name.endswith(".lua")}
    assert names == {*VERBS, "common"}


@pytest.mark.parametrize("verb", VERBS)
def test_a_script_states_its_contract_on_top(verb: str) -> None:
    text = (FOLDER / f"{verb}.lua").read_text()
    head = text.partition("\n\n")[0]
    assert head.startswith(f"-- {verb}: ")
    for word in ("-- KEYS: ", "-- ARGV: ", "-- Returns "):
        assert word in head


@pytest.mark.parametrize("verb", VERBS)
def test_a_script_uses_no_key_that_it_was_not_given(verb: str) -> None:
    text = (FOLDER / f"{verb}.lua").read_text()
    for call in re.findall(r"redis\.call\('(\w+)'(?:, ([^,)]+))?", text):
        command, key = call
        assert command != "KEYS"
        if command not in ("TIME",):
            assert key.startswith(("KEYS[", "session_key[")), call


def test_scripts_are_named_by_what_they_contain() -> None:
    scripts = load_scripts()
    assert len({script.sha for script in scripts.values()}) == len(VERBS)
    assert scripts == load_scripts()
    assert all("--" not in line[:2] for script in scripts.values() for line in script.source.splitlines())
