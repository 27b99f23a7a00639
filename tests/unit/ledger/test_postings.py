from hypothesis import given
from hypothesis import strategies as st

from services.common.ids import new_uuid7, uuid7_ms
from services.common.money import NANOS_MAX, PriceVector, TokenCounts
from services.ledger import postings
from services.ledger.postings import Charge, Finding
from tests.integration.ledger.entries import PRICE, entry

NANOS = st.integers(0, 10**12)


@given(cost=NANOS, loan_part=NANOS, escrow_rest=NANOS, available=NANOS)
def test_the_parts_of_a_cost_add_up_and_take_no_more_than_is_there(
    cost: int, loan_part: int, escrow_rest: int, available: int
) -> None:
    loan_part = min(loan_part, cost)
    loan, from_available, overrun = postings.split_cost(
        cost=cost, loan_part=loan_part, escrow_rest=escrow_rest, available=available
    )
    assert loan + from_available + overrun == cost
    assert 0 <= loan <= min(loan_part, escrow_rest)
    assert 0 <= from_available <= available
    assert overrun == 0 or from_available == available


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b"]), st.integers(1, 3), st.integers(0, 50), st.integers(0, 50)),
        max_size=30,
    ),
    NANOS,
)
def test_a_batch_of_charges_gives_journal_lines_that_sum_to_zero(
    sessions: list[tuple[str, int, int, int]], available: int
) -> None:
    entries = [
        entry(account, cost=1000 * max(cost, loan), loan=1000 * loan, epoch=epoch)
        for account, epoch, cost, loan in sessions
    ]
    rests = {("a", 1): 40_000, ("b", 2): 7_000}
    balances = {"a": available % 90_000, "b": 0}
    charges, _findings = postings.charge_all(entries, rests, balances)
    assert min(rests.values()) >= 0
    assert min(balances.values()) >= 0
    for account, total in postings.add_up(charges).items():
        lines = postings.journal_lines(account, total)
        assert sum(line.amount_nanos for line in lines) == 0
        assert all(line.amount_nanos for line in lines)
        assert total.ref == min(
            c.entry.record.session_id for c in charges if c.entry.record.account_id == account
        )


def test_an_escrow_that_was_returned_is_replaced_by_the_balance_then_by_the_operator() -> None:
    late = entry("a", cost=10_000)
    [charge], findings = postings.charge_all([late], {("a", 1): 3_000}, {"a": 5_000})
    assert charge == Charge(late, loan_nanos=3_000, available_nanos=5_000, overrun_nanos=2_000)
    assert [row.kind for row in findings] == [Finding.ESCROW_SHORT, Finding.OVERRUN]


def test_entries_that_no_ledger_could_post_are_named() -> None:
    sound = entry("a", cost=1_000)
    assert postings.find_fault(sound) is None
    faulty = [
        entry("a", cost=1_000, session_id="not-a-uuid"),
        entry("a", cost=1_000, session_id=sound.record.session_id.upper()),
        entry("a", cost=1_000, session_id="9f0f8f6e-0b8e-4f7e-8f7e-0b8e4f7e8f7e"),
        entry("a", cost=1_000, loan=2_000),
        entry("a", cost=1_000, loan=-1),
        entry("a", cost=1_000, epoch=0),
        entry("a", cost=1_000, cost_nanos=NANOS_MAX + 1),
        entry("a", cost=1_000, tokens=TokenCounts(output=-1)),
        entry("a", cost=1_000, duration_ms=2**63),
    ]
    assert all(postings.find_fault(each) for each in faulty)


def test_a_charge_is_repriced_with_the_version_it_names() -> None:
    sound = entry("a", cost=1_000)
    assert postings.check_price(sound, PRICE) is None
    mismatch = postings.check_price(sound, PriceVector(input=1_500_001))
    unknown = postings.check_price(sound, None)
    assert mismatch is not None
    assert mismatch.kind is Finding.PRICE_MISMATCH
    assert mismatch.detail == {"expected_nanos": 1_501, "charged_nanos": 1_000}
    assert unknown is not None
    assert unknown.kind is Finding.PRICE_UNKNOWN


def test_a_session_that_used_nothing_needs_no_price() -> None:
    assert postings.check_price(entry("a", cost=0), None) is None


def test_key_use_counts_in_the_utc_day_and_month_of_the_session() -> None:
    last_of_november = 1_796_083_199_000  # 2026-11-30T23:59:59Z
    sessions = [new_uuid7(last_of_november), new_uuid7(last_of_november + 2_000)]
    charges, _ = postings.charge_all(
        [entry("a", cost=1_000, session_id=session, key_id="k") for session in sessions], {}, {"a": 10_000}
    )
    assert [uuid7_ms(session) for session in sessions] == [last_of_november, last_of_november + 2_000]
    assert postings.key_use(charges) == {
        ("k", "all"): 2_000,
        ("k", "day:2026-11-30"): 1_000,
        ("k", "month:2026-11"): 1_000,
        ("k", "day:2026-12-01"): 1_000,
        ("k", "month:2026-12"): 1_000,
    }


def test_text_that_postgres_cannot_store_is_replaced() -> None:
    assert postings.clean_text("a\x00b") == "a\ufffdb"
    assert len(postings.clean_text("x" * 100_000)) == postings.TEXT_CHARS_MAX
