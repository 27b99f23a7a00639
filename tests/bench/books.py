"""After the load: is every token that the mock upstream emitted for us paid for, to the nanodollar?"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.e2e.stack import Customer, Stack

_SETTLE_SECONDS_MAX = 60.0


@dataclass(frozen=True)
class Books:
    """`charged_nanos`: what left the accounts; `emitted_nanos`: the price of what upstream reported."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    charged_nanos: int
    emitted_nanos: int
    held_nanos: int
    differences: list[Any]
    settle_seconds: float

    @property
    def exact(self) -> bool:
        return not self.differences and not self.held_nanos and self.charged_nanos == self.emitted_nanos

    def sentence(self) -> str:
        verdict = "exact" if self.exact else f"WRONG: reconcile says {self.differences[:3]}"
        return (
            f"Books: {self.requests:,} requests, {self.prompt_tokens:,} + {self.completion_tokens:,} tokens, "
            f"worth {self.emitted_nanos} nanodollars; charged {self.charged_nanos}, "
            f"still held {self.held_nanos}, {len(self.differences)} differences between the stores: "
            f"{verdict}."
        )

    def document(self) -> dict[str, Any]:
        return asdict(self) | {"exact": self.exact}


def check_books(
    stack: Stack,
    customers: Sequence[Customer],
    credited_nanos: int,
    emitted: dict[str, int],
    *,
    input_nanos_per_token: int,
    output_nanos_per_token: int,
) -> Books:
    """Wait until all is settled and posted, then compare. `emitted`: the mock upstream's totals for us."""
    worth = (
        emitted["prompt_tokens"] * input_nanos_per_token
        + emitted["completion_tokens"] * output_nanos_per_token
    )
    started_at = time.monotonic()
    while True:
        balances = [customer.balance() for customer in customers]
        held = sum(balance["held_nanos"] for balance in balances)
        charged = credited_nanos - sum(balance["balance_nanos"] for balance in balances)
        waited = time.monotonic() - started_at
        if (held == 0 and charged == worth) or waited > _SETTLE_SECONDS_MAX:
            break
        time.sleep(0.5)
    done = stack.run("reconcile")
    try:
        differences = json.loads(done.stdout)["differences"]
    except (ValueError, KeyError):
        differences = [f"reconcile failed: {done.stdout[-500:]} {done.stderr[-500:]}"]
    return Books(
        requests=emitted["requests"],
        prompt_tokens=emitted["prompt_tokens"],
        completion_tokens=emitted["completion_tokens"],
        charged_nanos=charged,
        emitted_nanos=worth,
        held_nanos=held,
        differences=differences,
        settle_seconds=waited,
    )
