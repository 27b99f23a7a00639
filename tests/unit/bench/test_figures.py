import pytest

from tests.bench.figures import Summary, differences, median, percentile, ratios


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(number) for number in range(1, 101)]
    assert percentile(values, 0.5) == 50.0
    assert percentile(values, 0.99) == 99.0
    assert percentile(values, 1.0) == 100.0
    assert percentile([7.0], 0.99) == 7.0
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0


def test_a_percentile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 0.5)


def test_a_median_of_an_even_number_lies_between_the_middle_two() -> None:
    assert median([4.0, 1.0, 3.0]) == 3.0
    assert median([4.0, 1.0, 3.0, 2.0]) == 2.5


def test_ratios_pair_runs_of_the_same_round() -> None:
    # The second round was twice as slow for both: the ratio does not show it.
    assert ratios({0: 2.0, 1: 4.0}, {0: 1.0, 1: 2.0}) == [2.0, 2.0]


def test_rounds_that_only_one_side_has_are_left_out() -> None:
    assert ratios({0: 2.0, 1: 9.0}, {0: 1.0, 2: 3.0}) == [2.0]
    assert differences({0: 2.0, 1: 9.0}, {0: 1.5, 2: 3.0}) == [0.5]


def test_a_round_in_which_the_yardstick_measured_nothing_has_no_ratio() -> None:
    assert ratios({0: 2.0}, {0: 0.0}) == []


def test_a_summary_keeps_the_spread() -> None:
    assert Summary.of([3.0, 1.0, 2.0]) == Summary(median=2.0, least=1.0, most=3.0)
