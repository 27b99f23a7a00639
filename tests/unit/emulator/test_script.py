import contextlib
import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.emulator.log import Row
from services.emulator.script import FAULTS, Script, ScriptError, parse_fault, script_for

PAGE = Path(__file__).parents[3] / "docs" / "emulator.md"


def test_a_directive_changes_the_header_which_changes_the_defaults() -> None:
    script = script_for(
        Script(delay_ms=5.0),
        header='{"tokens": 9, "text": "emoji"}',
        message="Hi [[emulate tokens=500 delay_ms=20 fault=close_after:10]] there",
    )
    assert script == Script(tokens=500, delay_ms=20.0, text="emoji", fault="close_after:10")


def test_a_header_may_be_pairs_and_a_bare_name_means_yes() -> None:
    script = script_for(Script(), header="no_space;comments;usage=less:3", message="")
    assert script == Script(no_space=True, comments=1, usage="less:3")


@pytest.mark.parametrize(
    "directive",
    ["tokens=-1", "tokens=x", "delay_ms=nan", "text=latin", "usage=less", "usage=none:1", "usage=more:x",
     "no_space=perhaps", "nonsense=1", "fault=explode", "fault=close_after", "fault=status:200",
     "fault=garbage:1",
     "fault=error_event_after:1:loudly", "chunk_tokens=0", "tokens=99999999"],
)  # fmt: skip
def test_a_wrong_directive_is_refused(directive: str) -> None:
    with pytest.raises(ScriptError):
        script_for(Script(), header=None, message=f"[[emulate {directive}]]")


@given(st.text(max_size=80))
def test_no_message_breaks_the_parser(text: str) -> None:
    with contextlib.suppress(ScriptError):
        assert isinstance(script_for(Script(), header=None, message=f"[[emulate {text}]]"), Script)


def test_a_fault_has_its_numbers() -> None:
    assert parse_fault("") is None
    fault = parse_fault("status:429:7")
    assert fault is not None
    assert (fault.number, fault.retry_after_seconds) == (429, 7)
    fault = parse_fault("error_event_after:3:silence")
    assert fault is not None
    assert (fault.number, fault.word) == (3, "silence")


def section(name: str) -> str:
    return PAGE.read_text().split(f"## {name}\n")[1].split("\n## ")[0]


def test_the_page_lists_every_field_with_its_default_and_meaning() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", section("Directives"), re.MULTILINE))
    for field in dataclasses.fields(Script):
        default = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
        taken = ", ".join(f"`{choice}`" for choice in field.metadata["choices"])
        meaning = field.metadata["meaning"] + (f": {taken}" if taken else "")
        assert rows.pop(field.name, None) == f"{f'`{default}`' if default else 'none'} | {meaning}"
    assert rows == {}, "the page lists fields that do not exist"


def test_the_page_lists_every_fault() -> None:
    listed = re.findall(r"^\| `(\w+)[^`]*` \|", section("Faults"), re.MULTILINE)
    assert sorted(listed) == sorted(FAULTS)


def test_the_page_lists_every_column_of_the_log() -> None:
    first_cells = re.findall(r"^\| (`.+?`) \|", section("The log"), re.MULTILINE)
    listed = {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}
    assert listed == set(Row(request_id="", path="/", headers={}).as_dict(1))
