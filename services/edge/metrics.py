"""The edge's metrics: plain integers on the hot path, made into Prometheus samples on scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from services.common.metrics import LATENCY_BUCKETS_S, HotHistogram
from services.common.money import TOKEN_CLASSES, TokenCounts

FIRST_TOKEN_BUCKETS_S = (*LATENCY_BUCKETS_S, 30, 60, 120)


class EdgeMetrics(Collector):
    """`gauges`: read on scrape, by name and help text."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, str]] = Counter()
        self.refusals: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.usage_sources: Counter[str] = Counter()
        self.usage_flags: Counter[str] = Counter()
        self.upstream_failures: Counter[tuple[str, str]] = Counter()
        self.recovered: Counter[str] = Counter()
        self.promises = 0
        self.charged_nanos = 0
        self.open_streams = 0
        self.sessions = 0
        self.first_token = HotHistogram(FIRST_TOKEN_BUCKETS_S)
        self.added_latency = HotHistogram(LATENCY_BUCKETS_S)
        self.gauges: list[tuple[str, str, Callable[[], float]]] = []

    def count_request(self, endpoint: str, status: int, outcome: str) -> None:
        self.requests[endpoint, f"{status // 100}xx", outcome] += 1

    def count_charge(self, tokens: TokenCounts, cost_nanos: int, source: str, flags: tuple[str, ...]) -> None:
        self.charged_nanos += cost_nanos
        self.usage_sources[source] += 1
        for flag in flags:
            # A flag may carry figures behind its name; labels are bounded.
            self.usage_flags[flag.partition(":")[0]] += 1
        for name in TOKEN_CLASSES:
            if count := getattr(tokens, name):
                self.tokens[name] += count

    def collect(self) -> Iterator[Metric]:
        yield from self._labelled()
        charged = CounterMetricFamily("meterway_edge_charged_nanos", "Nanodollars charged by ended sessions.")
        charged.add_metric([], self.charged_nanos)
        yield charged
        promises = CounterMetricFamily("meterway_edge_promises", "Buckets' newer epochs that were promised.")
        promises.add_metric([], self.promises)
        yield promises
        gauges: list[tuple[str, str, Callable[[], float]]] = [
            ("meterway_edge_open_streams", "Streams that run now.", lambda: float(self.open_streams)),
            ("meterway_edge_sessions", "Requests that are served now.", lambda: float(self.sessions)),
            *self.gauges,
        ]
        for name, help_text, read in gauges:
            gauge = GaugeMetricFamily(name, help_text)
            gauge.add_metric([], read())
            yield gauge
        for name, help_text, histogram in (
            (
                "meterway_edge_first_token_seconds",
                "From a streamed request's arrival to the first bytes of its answer.",
                self.first_token,
            ),
            (
                "meterway_edge_added_latency_seconds",
                "From a request's arrival to its departure to the upstream.",
                self.added_latency,
            ),
        ):
            family = HistogramMetricFamily(name, help_text)
            family.add_metric([], histogram.buckets(), histogram.sum)
            yield family

    def _labelled(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "meterway_edge_requests", "Ended requests.", labels=("endpoint", "status", "outcome")
        )
        for labels, count in self.requests.items():
            requests.add_metric(labels, count)
        yield requests
        failures = CounterMetricFamily(
            "meterway_edge_upstream_failures", "Failed upstream attempts.", labels=("channel_id", "kind")
        )
        for pair, count in self.upstream_failures.items():
            failures.add_metric(pair, count)
        yield failures
        for name, help_text, label, counts in (
            ("meterway_edge_refusals", "Refused requests by error code.", "code", self.refusals),
            ("meterway_edge_tokens", "Charged tokens by class.", "token_class", self.tokens),
            ("meterway_edge_usage_sources", "Where usage came from.", "source", self.usage_sources),
            (
                "meterway_edge_recovered",
                "Sessions told from a log: of dead processes, or that never reached the ledger.",
                "result",
                self.recovered,
            ),
            ("meterway_edge_usage_flags", "Usage that is worth a look, by cause.", "flag", self.usage_flags),
        ):
            family = CounterMetricFamily(name, help_text, labels=(label,))
            for value, count in counts.items():
                family.add_metric([value], count)
            yield family


def register(registry: CollectorRegistry) -> EdgeMetrics:
    metrics = EdgeMetrics()
    registry.register(metrics)
    return metrics
