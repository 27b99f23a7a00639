"""The tally of uncounted output text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.edge.streams.texts import TextKey, TextTally

CONTENT = TextKey(0, "content")
KEYS = st.sampled_from([CONTENT, TextKey(1, "content"), TextKey(0, "tool:0")])


@given(
    steps=st.lists(st.tuples(KEYS, st.text(max_size=6)) | st.tuples(KEYS, st.integers(0, 12)), max_size=200)
)
def test_what_is_not_consumed_stays_in_order(steps: list[tuple[TextKey, str | int]]) -> None:
    tally = TextTally()
    expected: dict[TextKey, str] = {}
    for key, step in steps:
        if isinstance(step, str):
            assert tally.add(key, step) == len(step.encode("utf-8", "surrogatepass"))
            expected[key] = expected.get(key, "") + step
        else:
            tally.consume(key, step)
            expected[key] = expected.get(key, "")[step:]
    assert tally.texts() == {key: text for key, text in expected.items() if text}
    assert tally.uncounted_bytes == sum(
        len(text.encode("utf-8", "surrogatepass")) for text in expected.values()
    )


def test_text_that_came_during_a_count_is_kept() -> None:
    tally = TextTally()
    tally.add(CONTENT, "Hello wor")
    sent = tally.texts()
    tally.add(CONTENT, "ld")
    tally.consume(CONTENT, len("Hello"))
    assert sent == {CONTENT: "Hello wor"}
    assert tally.texts() == {CONTENT: " world"}
