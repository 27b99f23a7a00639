from services.common.contracts.recovery import OpenSession, Promise
from services.common.ids import AccountId, EdgeId, SessionId, bucket_of, new_session_id
from services.ledger import promises
from services.ledger.promises import Debt, Standing

ACCOUNT = AccountId("acct_1")
BUCKET = bucket_of(ACCOUNT)


def standing(*, promised_by: str = "one", promised_epoch: int = 0, gone_epoch: int = 0) -> Standing:
    return Standing("edge-1", "one", promised_by, promised_epoch, gone_epoch)


def listed(*, epoch: int = 1, held_nanos: int = 5, **changes: object) -> OpenSession:
    fields = {
        "session_id": new_session_id(), "account_id": ACCOUNT, "bucket": BUCKET, "epoch": epoch,
        "held_nanos": held_nanos,
    } | changes  # fmt: skip
    return OpenSession(**fields)  # type: ignore[arg-type]


def promise(epochs: dict[int, int], *sessions: OpenSession) -> Promise:
    return Promise(edge_id=EdgeId("edge-1"), incarnation="one", epochs=epochs, sessions=sessions)


def test_an_epoch_waits_for_every_edge_that_has_not_promised_a_newer_one() -> None:
    assert promises.waits_for([standing(promised_epoch=1)], 1) == ["edge-1"]
    assert promises.waits_for([standing(promised_epoch=2)], 1) == []
    assert promises.waits_for([standing(promised_epoch=2), standing()], 1) == ["edge-1"]
    assert promises.waits_for([], 1) == []


def test_a_promise_of_the_process_before_does_not_count() -> None:
    assert promises.waits_for([standing(promised_by="before", promised_epoch=9)], 1) == ["edge-1"]


def test_an_edge_that_was_given_up_is_not_waited_for_in_older_epochs_only() -> None:
    assert promises.waits_for([standing(gone_epoch=2)], 1) == []
    assert promises.waits_for([standing(gone_epoch=2)], 2) == ["edge-1"]


def test_what_is_held_or_unposted_stays_in_escrow() -> None:
    assert promises.returnable_nanos(rest=10, held=3, unposted=2) == 5
    assert promises.returnable_nanos(rest=10, held=30, unposted=0) == 0


def test_all_buckets_of_an_edge_are_asked_for_at_once() -> None:
    debts = [Debt("edge-1", "one", "http://a", 5, bucket, 2, bucket != 7) for bucket in (3, 7)]
    [ask] = promises.asks_of(debts)
    assert (ask.epochs, ask.is_awaited) == ({3: 2, 7: 2}, True)
    assert ask.is_silent(4)
    assert not ask.is_silent(5)
    assert not promises.asks_of(debts[:1])[0].is_awaited


def test_a_promise_of_less_than_was_asked_is_none() -> None:
    answer = promises.judge({BUCKET: 3}, promise({BUCKET: 2}, listed()), {})
    assert (answer.epochs, answer.sessions) == ({}, [])


def test_only_sessions_of_older_epochs_that_nobody_was_given_up_for_count() -> None:
    old, older, new = listed(epoch=2), listed(epoch=1), listed(epoch=3)
    answer = promises.judge({BUCKET: 3}, promise({BUCKET: 3}, old, older, new), {BUCKET: 2})
    assert answer.sessions == [old]


def test_sessions_that_cannot_be_are_refused() -> None:
    wrong = [
        listed(session_id=SessionId("x")),
        listed(bucket=(BUCKET + 1) % 256),
        listed(bucket=256),
        listed(held_nanos=-1),
        listed(epoch=0),
    ]
    answer = promises.judge({BUCKET: 3}, promise({BUCKET: 3}, *wrong), {})
    assert answer.sessions == []
    assert len(answer.refused) == len(wrong)
