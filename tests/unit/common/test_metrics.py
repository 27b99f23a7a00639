"""Histograms of the hot path count like Prometheus's own."""

from services.common.metrics import HotHistogram


def test_a_histogram_counts_each_observation_in_every_bucket_above_it() -> None:
    histogram = HotHistogram((1, 2, 4))
    for value in (0.5, 1, 3, 9):
        histogram.observe(value)
    assert histogram.buckets() == [("1.0", 2), ("2.0", 2), ("4.0", 3), ("+Inf", 4)]
    assert histogram.sum == 13.5
