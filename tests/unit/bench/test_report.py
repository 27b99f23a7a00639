from typing import Any

import pytest

from tests.bench.goals import judge
from tests.bench.parts import PARTS, Part, choose, long_prompt_request, request
from tests.bench.report import Report, document, from_document
from tests.bench.runs import BARE, US, Run, faults
from tests.bench.written_docs import BEGIN, END, PAGE, replace_section


def _result(**fields: Any) -> dict[str, Any]:
    figures = dict.fromkeys(
        ("latency_p50_ms", "latency_p99_ms", "ttft_p50_ms", "ttft_p99_ms", "gap_p99_ms", "gap_most_ms"), 1.0
    )
    usual = {
        "requests": 1000, "seconds": 2.0, "cpu_seconds": 1.0, "cpu_seconds_by_name": {"edge": 1.0},
        "events": 0, "failures": {}, "client_busy": 0.3, "mock_busy": 0.2, "others_busy": 0.0,
        "late_share": 0.0, "memory_before_kib": 0, "memory_open_kib": 0,
        "memory_streams": 0,
    }  # fmt: skip
    return usual | figures | fields


def _runs(ours: list[float], bare: list[float]) -> list[Run]:
    """Runs of plain-c32 that took so many CPU seconds, round by round."""
    return [
        Run("plain-c32", subject, number, _result(cpu_seconds=seconds))
        for subject, rounds in ((US, ours), (BARE, bare))
        for number, seconds in enumerate(rounds)
    ]


@pytest.mark.parametrize(("ours", "word"), [(0.9, "goal reached"), (1.9, "must reached"), (2.1, "MISSED")])
def test_a_ratio_is_judged_by_its_median_over_the_rounds(ours: float, word: str) -> None:
    (verdict,) = judge(_runs([9.0, ours, ours * 2], [1.0, 1.0, 2.0]), lambda part, subject: None)
    assert verdict.measured.median == pytest.approx(ours)
    assert verdict.measured.most == 9.0
    assert verdict.word == word


def test_memory_per_stream_is_the_most_of_all_rounds() -> None:
    part = next(part for part in PARTS if part.name == "slow-1000")
    # In the second round only half of the streams had begun.
    runs = [
        Run("slow-1000", US, number, _result(memory_open_kib=grown, memory_streams=streams))
        for number, (grown, streams) in enumerate(((40_000, 1_000), (15_000, 500)))
    ]
    assert Report([part], runs).memory("slow-1000", US) == 40.0


def test_figures_are_void_when_the_client_was_the_limit_or_an_answer_was_wrong() -> None:
    runs = [
        Run("plain-c32", US, 0, _result(client_busy=0.95)),
        Run("plain-c32", BARE, 0, _result(failures={"answered 503": 2})),
        Run("plain-c32", BARE, 1, _result()),
    ]
    assert faults(runs) == [
        "plain-c32, meterway, round 1: the load generator was busy 95% of the time",
        "plain-c32, bare, round 1: 2 x answered 503",
    ]


def test_a_report_can_be_read_again_from_its_document() -> None:
    parts = [part for part in PARTS if part.name == "plain-c32"]
    report = Report(parts, _runs([1.0], [2.0]))
    again = from_document(document(report, {}, None, {}))
    assert again.figure_rows() == report.figure_rows()
    assert again.figure_rows()[-1][:5] == ("plain-c32", US, "500", "1.00", "0.500")


def test_a_request_declares_the_length_it_has() -> None:
    part = Part(name="p", title="p", tokens=5, stream=True)
    for text in (request(part, port=1, api_key="k"), long_prompt_request(port=1, api_key="k")):
        head, _, body = text.partition("\r\n\r\n")
        assert f"content-length: {len(body.encode())}" in head


def test_an_unknown_part_is_named_beside_those_there_are() -> None:
    with pytest.raises(ValueError, match="plain-c32"):
        choose(["nonsense"], quick=False, full=False)
    assert [part.name for part in choose(["stream"], quick=True, full=False)] == [
        "stream-unpaced",
        "stream-paced",
    ]


def test_only_what_is_between_the_marks_is_replaced() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert replace_section(page, "new") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    with pytest.raises(ValueError, match="begin"):
        replace_section("nothing", "new")


def test_the_page_in_the_docs_has_the_marks() -> None:
    page = PAGE.read_text()
    assert page.count(BEGIN) == page.count(END) == 1
