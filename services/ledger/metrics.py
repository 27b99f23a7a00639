"""The ledger's metrics. Labels are bounded: never an account, key or session."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.common.metrics import LATENCY_BUCKETS_S


class LedgerMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._make_posting_metrics(registry)
        self._make_lending_metrics(registry)
        self._make_recovery_metrics(registry)
        self._make_operator_metrics(registry)

    def _make_posting_metrics(self, registry: CollectorRegistry) -> None:
        self.postgres_seconds = Histogram(
            "meterway_ledger_postgres_seconds",
            "Time of one statement or transaction, connection included.",
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.transaction_retries = Counter(
            "meterway_ledger_transaction_retries_total",
            "Transactions tried again, by the error's name.",
            ["cause"],
            registry=registry,
        )
        self.posted_sessions = Counter(
            "meterway_ledger_posted_sessions_total", "Usage rows posted.", registry=registry
        )
        self.duplicate_sessions = Counter(
            "meterway_ledger_duplicate_sessions_total",
            "Sessions that came again and changed nothing.",
            registry=registry,
        )
        self.exceptions = Counter(
            "meterway_ledger_exceptions_total",
            "Findings written to the exception list, by kind.",
            ["kind"],
            registry=registry,
        )
        self.charged_nanos = Counter(
            "meterway_ledger_charged_nanodollars_total", "Cost of the usage posted.", registry=registry
        )
        self.overrun_nanos = Counter(
            "meterway_ledger_overrun_nanodollars_total",
            "Cost that neither loan nor balance covered: the operator pays it.",
            registry=registry,
        )
        self.posting_batch_sessions = Histogram(
            "meterway_ledger_posting_batch_sessions",
            "Sessions per posting transaction.",
            buckets=(1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2000),
            registry=registry,
        )

    def _make_lending_metrics(self, registry: CollectorRegistry) -> None:
        self.lent_nanos = Counter(
            "meterway_ledger_lent_nanodollars_total", "Money moved from balances to loans.", registry=registry
        )
        self.loans = Counter(
            "meterway_ledger_loan_requests_total",
            "Loan requests by result: lent (now or before), nothing, refused.",
            ["result"],
            registry=registry,
        )
        self.returned_nanos = Counter(
            "meterway_ledger_returned_nanodollars_total",
            "Unspent loans of ended epochs that went back to their balances.",
            registry=registry,
        )
        self.fenced_buckets = Counter(
            "meterway_ledger_fenced_buckets_total", "Buckets given a new epoch.", registry=registry
        )
        self.open_fences = Gauge(
            "meterway_ledger_open_fences", "Ended epochs whose loans are still frozen.", registry=registry
        )
        self.sealed_transactions = Counter(
            "meterway_ledger_sealed_transactions_total",
            "Journal transactions put into a block of the hash chain.",
            registry=registry,
        )
        self.unsealed_transactions = Gauge(
            "meterway_ledger_unsealed_transactions",
            "Journal transactions that no block of the hash chain has yet, counted up to 100,000.",
            registry=registry,
        )
        self.seal_lag_seconds = Gauge(
            "meterway_ledger_seal_lag_seconds",
            "Age of the oldest journal transaction that no block has yet; 0: all are sealed.",
            registry=registry,
        )
        self.recalls = Counter(
            "meterway_ledger_recalls_total", "Answers to recalls, by result.", ["result"], registry=registry
        )
        self.recalled_nanos = Counter(
            "meterway_ledger_recalled_nanodollars_total",
            "Unheld parts of current loans that came back.",
            registry=registry,
        )
        self.meters_unconfirmed = Counter(
            "meterway_ledger_meters_unconfirmed_total",
            "Pushes that a meter did not confirm in time.",
            registry=registry,
        )

    def _make_recovery_metrics(self, registry: CollectorRegistry) -> None:
        self.promises = Counter(
            "meterway_ledger_promises_total", "Buckets' epochs that edges promised.", registry=registry
        )
        self.roll_calls_unanswered = Counter(
            "meterway_ledger_roll_calls_unanswered_total",
            "Roll-calls that an edge did not answer, or not in full.",
            registry=registry,
        )
        self.edges_given_up = Counter(
            "meterway_ledger_edges_given_up_total",
            "Times that a roll-call went on without an edge that was silent.",
            registry=registry,
        )
        self.edges_forgotten = Counter(
            "meterway_ledger_edges_forgotten_total",
            "Edges that were silent for so long that they count as lost.",
            registry=registry,
        )
        self.open_sessions = Gauge(
            "meterway_ledger_open_sessions",
            "Sessions of ended epochs that edges listed and that have not ended.",
            registry=registry,
        )
        self.lost_sessions = Counter(
            "meterway_ledger_lost_sessions_total",
            "Sessions of lost edges that ended uncharged: the operator pays them.",
            registry=registry,
        )
        self.lost_held_nanos = Counter(
            "meterway_ledger_lost_held_nanodollars_total",
            "The most that those sessions can have cost.",
            registry=registry,
        )

    def _make_operator_metrics(self, registry: CollectorRegistry) -> None:
        self.credentials_set_aside = Counter(
            "meterway_ledger_credentials_set_aside_total",
            "Channel credentials that an upstream refused, by its status.",
            ["status"],
            registry=registry,
        )
        self.credentials_unreadable = Gauge(
            "meterway_ledger_credentials_unreadable",
            "Channel credentials that no key of the settings opens.",
            registry=registry,
        )
        self.routing_revision = Gauge(
            "meterway_ledger_routing_revision", "The newest routing given to an edge.", registry=registry
        )
        self.operator_logins_refused = Counter(
            "meterway_ledger_operator_logins_refused_total",
            "Requests to the operators' API with a wrong or no credential, or throttled.",
            ["reason"],
            registry=registry,
        )
