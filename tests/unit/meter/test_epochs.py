"""Which buckets can be trusted."""

from hypothesis import given
from hypothesis import strategies as st

from services.meter.epochs import judge


def verdict(seen: int, ledger: int, suspects: dict[int, int] | None = None) -> str:
    judgement = judge([seen], [ledger], run_id_known=True, suspects=suspects or {})
    names = [name for name in ("live", "begin", "fence") if getattr(judgement, name)]
    assert len(names) == 1
    return names[0]


def test_a_bucket_with_the_ledgers_epoch_is_live() -> None:
    assert verdict(4, 4) == "live"


def test_a_missing_epoch_or_one_ahead_of_the_ledger_is_fenced() -> None:
    assert verdict(0, 4) == "fence"
    assert verdict(0, 1) == "fence"
    assert verdict(5, 4) == "fence"


def test_an_older_epoch_is_brought_forward() -> None:
    assert verdict(3, 4) == "begin"


def test_a_bucket_that_lost_an_account_is_fenced_only_in_the_epoch_it_happened_in() -> None:
    assert verdict(4, 4, {0: 4}) == "fence"
    assert verdict(5, 5, {0: 4}) == "live"
    assert verdict(4, 5, {0: 4}) == "begin"


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=256))
def test_every_bucket_gets_exactly_one_verdict(pairs: list[tuple[int, int]]) -> None:
    judgement = judge(
        [seen for seen, _ in pairs], [ledger for _, ledger in pairs], run_id_known=False, suspects={}
    )
    buckets = [*judgement.live, *judgement.begin, *judgement.fence]
    assert sorted(buckets) == list(range(len(pairs)))
