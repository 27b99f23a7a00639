"""The meter's metrics."""

from prometheus_client.exposition import generate_latest

from services.meter.metrics import MeterMetrics


def test_what_was_counted_is_exposed() -> None:
    metrics = MeterMetrics()
    metrics.admitted["stream"] += 2
    metrics.refused["insufficient_quota"] += 1
    metrics.script_seconds["open"].observe(0.002)
    metrics.store_is_up = lambda: True
    text = generate_latest(metrics.registry).decode()
    assert 'meterway_meter_admitted_total{kind="stream"} 2.0' in text
    assert 'meterway_meter_refused_total{cause="insufficient_quota"} 1.0' in text
    assert 'meterway_meter_script_seconds_bucket{le="0.0025",verb="open"} 1.0' in text
    assert "meterway_meter_store_up 1.0" in text


def test_two_meters_in_one_process_have_their_own_registries() -> None:
    first, second = MeterMetrics(), MeterMetrics()
    first.admitted["stream"] += 1
    assert 'meterway_meter_admitted_total{kind="stream"}' not in generate_latest(second.registry).decode()
