"""The meter's metrics: plain counters on the hot path, collected when they are scraped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from services.common.metrics import LATENCY_BUCKETS_S, HotHistogram, new_registry
from services.meter.scripts import VERBS

SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class MeterMetrics(Collector):
    """`refused` and `admitted` by cause; gauges that need a look are set by those who know them."""

    def __init__(self) -> None:
        self.registry: CollectorRegistry = new_registry()
        self.admitted: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.extends: Counter[str] = Counter()
        self.held_nanos = 0
        self.charged_nanos = 0
        self.loans: Counter[str] = Counter()
        self.lent_nanos = 0
        self.orphans: Counter[str] = Counter()
        self.orphan_held_nanos = 0
        self.fences: Counter[str] = Counter()
        self.redis_timeouts = 0
        self.posted_entries = 0
        self.posting_failures = 0
        self.poison_entries = 0
        self.outbox_entries = 0
        self.outbox_lag_s = 0.0
        self.direct_postings = 0
        self.counted_tokens: Counter[str] = Counter()
        self.count_seconds = HotHistogram(LATENCY_BUCKETS_S)
        self.script_seconds = {verb: HotHistogram(LATENCY_BUCKETS_S) for verb in VERBS}
        self.frame_calls = HotHistogram(SIZE_BUCKETS)
        self.frame_replies = HotHistogram(SIZE_BUCKETS)
        self.posting_entries = HotHistogram(SIZE_BUCKETS)
        self.edges = 0
        self.store_is_up: Callable[[], bool] = lambda: False
        self.buckets_live: Callable[[], int] = lambda: 0
        self.catalogue_age_s: Callable[[], float] = lambda: 0.0
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        yield from self._session_metrics()
        yield from self._store_metrics()
        yield from self._posting_metrics()
        yield _histograms(
            "meterway_meter_count_seconds", "Seconds a count took.", (), [((), self.count_seconds)]
        )
        yield _counters("meterway_meter_counted_tokens", "Tokens counted.", "what", self.counted_tokens)
        yield _gauge("meterway_meter_catalogue_age_seconds", "Since the ledger confirmed the price list.",
                     self.catalogue_age_s())  # fmt: skip

    def _session_metrics(self) -> Iterator[Metric]:
        yield _counters("meterway_meter_admitted", "Sessions admitted.", "kind", self.admitted)
        yield _counters("meterway_meter_refused", "Opens refused.", "cause", self.refused)
        yield _counters("meterway_meter_extends", "Extends answered.", "outcome", self.extends)
        yield _counters("meterway_meter_ended", "Sessions ended.", "state", self.ended)
        yield _counter("meterway_meter_held_nanos", "Nanodollars held by opens.", self.held_nanos)
        yield _counter("meterway_meter_charged_nanos", "Nanodollars charged.", self.charged_nanos)
        yield _counters("meterway_meter_orphans", "Sessions whose lease ran out.", "step", self.orphans)
        yield _counter(
            "meterway_meter_orphan_held_nanos", "Nanodollars held by sessions as they became orphans.",
            self.orphan_held_nanos,
        )  # fmt: skip
        yield _gauge("meterway_meter_edges", "Edges connected.", self.edges)
        yield _histograms(
            "meterway_meter_frame_messages", "Messages that came or went in one frame.", ("direction",),
            [(("in",), self.frame_calls), (("out",), self.frame_replies)],
        )  # fmt: skip

    def _store_metrics(self) -> Iterator[Metric]:
        yield _gauge("meterway_meter_store_up", "1: Redis is connected.", int(self.store_is_up()))
        yield _gauge("meterway_meter_buckets_live", "Buckets that take new sessions.", self.buckets_live())
        yield _counters("meterway_meter_fences", "Buckets fenced.", "cause", self.fences)
        yield _counter("meterway_meter_redis_timeouts", "Connections given up on.", self.redis_timeouts)
        yield _histograms(
            "meterway_meter_script_seconds", "Seconds until Redis answered a script.", ("verb",),
            [((verb,), histogram) for verb, histogram in self.script_seconds.items()],
        )  # fmt: skip

    def _posting_metrics(self) -> Iterator[Metric]:
        yield _counters("meterway_meter_loans", "Answers to loan requests.", "outcome", self.loans)
        yield _counter("meterway_meter_lent_nanos", "Nanodollars lent to Redis.", self.lent_nanos)
        yield _gauge("meterway_meter_outbox_entries", "Entries that wait for posting.", self.outbox_entries)
        yield _gauge("meterway_meter_outbox_lag_seconds", "Age of the oldest one.", self.outbox_lag_s)
        yield _counter("meterway_meter_posted_entries", "Entries the ledger confirmed.", self.posted_entries)
        yield _counter("meterway_meter_posting_failures", "Posting calls that failed.", self.posting_failures)
        yield _counter(
            "meterway_meter_poison_entries", "Entries set aside as unreadable.", self.poison_entries
        )
        yield _counter("meterway_meter_direct_postings", "Settles the ledger charged.", self.direct_postings)
        yield _histograms(
            "meterway_meter_posting_entries", "Entries in one posting call.", (), [((), self.posting_entries)]
        )


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counters(name: str, text: str, label: str, values: Counter[str]) -> Metric:
    family = CounterMetricFamily(name, text, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family


def _histograms(
    name: str, text: str, labels: tuple[str, ...], series: Iterable[tuple[tuple[str, ...], HotHistogram]]
) -> Metric:
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, histogram in series:
        family.add_metric(values, histogram.buckets(), histogram.sum)
    return family
