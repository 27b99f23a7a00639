"""Sessions that end one after another are posted together, and none of them late."""

from __future__ import annotations

import asyncio
import time

from services.common.contracts.charging import Admitted, Ended
from services.common.money import NANOS_PER_USD
from tests.integration.meter.conftest import RunningMeter, until
from tests.integration.meter.edge_line import open_call, open_session, settle_call
from tests.integration.meter.fake_ledger import FakeLedger


async def test_a_steady_load_is_posted_in_few_calls(meter: RunningMeter, ledger: FakeLedger) -> None:
    key = ledger.add_key(ledger.add_account("steady", 10 * NANOS_PER_USD))
    began, settled = time.monotonic(), 0
    while (seconds := time.monotonic() - began) < 0.7 or settled < 40:
        admitted = await open_session(meter.line, open_call(key, output_tokens_max=10))
        assert isinstance(admitted, Admitted)
        assert isinstance(await meter.line.call(settle_call(admitted, output_tokens=3)), Ended)
        settled += 1
        await asyncio.sleep(0.005)
    await until(lambda: len(ledger.posted) == settled)
    # One every 100 ms, and one at either end.
    assert sum(meter.parts.metrics.posting_entries.counts) <= seconds / 0.1 + 2


async def test_what_ends_after_a_pause_is_posted_soon(meter: RunningMeter, ledger: FakeLedger) -> None:
    key = ledger.add_key(ledger.add_account("seldom", 10 * NANOS_PER_USD))
    seconds = []
    for _ in range(3):
        admitted = await open_session(meter.line, open_call(key, output_tokens_max=10))
        assert isinstance(admitted, Admitted)
        await asyncio.sleep(0.15)
        await meter.line.call(settle_call(admitted, output_tokens=3))
        began = time.monotonic()
        await until(lambda: admitted.ref.session_id in ledger.posted)  # noqa: B023
        seconds.append(time.monotonic() - began)
    assert min(seconds) < 0.09
