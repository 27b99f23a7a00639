"""Breakers and credentials, on a clock handed in."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.edge.upstreams.health import Health, HealthLimits
from tests.unit.edge_upstreams.channels import channel

LIMITS = HealthLimits(failures_to_open=3, open_first_ms=1_000, open_max_ms=4_000, probe_timeout_ms=10_000)
ONE = channel("one")
TWO = channel("two", credentials=2)


def opened(health: Health, now_ms: int = 0) -> Health:
    for _ in range(LIMITS.failures_to_open):
        health.failed(ONE.id, now_ms)
    return health


def test_failures_in_a_row_open_a_channel() -> None:
    health = Health(LIMITS)
    health.failed(ONE.id, 0)
    health.failed(ONE.id, 0)
    assert health.may_try(ONE.id, 0)
    health.failed(ONE.id, 0)
    assert not health.may_try(ONE.id, 999)
    assert health.channel_state(ONE.id, 999) == "open"
    assert health.retry_in_ms(ONE, 400) == 600


def test_a_success_in_between_starts_the_count_anew() -> None:
    health = Health(LIMITS)
    for _ in range(10):
        health.failed(ONE.id, 0)
        health.failed(ONE.id, 0)
        health.answered(ONE.id, "one-0")
    assert health.channel_state(ONE.id, 0) == "closed"


def test_half_open_lets_one_probe_through_at_a_time() -> None:
    health = opened(Health(LIMITS))
    assert health.channel_state(ONE.id, 1_000) == "half_open"
    assert health.may_try(ONE.id, 1_000)
    assert not health.may_try(ONE.id, 1_001)
    health.answered(ONE.id, "one-0")
    assert health.may_try(ONE.id, 1_002)
    assert health.may_try(ONE.id, 1_002)


def test_a_probe_that_is_given_up_makes_room_for_the_next() -> None:
    health = opened(Health(LIMITS))
    assert health.may_try(ONE.id, 1_000)
    health.abandoned(ONE.id)
    assert health.may_try(ONE.id, 1_001)


def test_a_probe_that_is_never_heard_of_again_does_not_block_for_ever() -> None:
    health = opened(Health(LIMITS))
    assert health.may_try(ONE.id, 1_000)
    assert health.may_try(ONE.id, 1_000 + LIMITS.probe_timeout_ms)


def test_failed_probes_double_the_wait_up_to_a_bound() -> None:
    health = opened(Health(LIMITS))
    now_ms = 0
    waits = []
    for _ in range(5):
        wait_ms = health.retry_in_ms(ONE, now_ms)
        waits.append(wait_ms)
        now_ms += wait_ms
        assert health.may_try(ONE.id, now_ms)
        health.failed(ONE.id, now_ms)
    assert waits == [1_000, 2_000, 4_000, 4_000, 4_000]


def test_requests_that_began_before_the_opening_do_not_lengthen_it() -> None:
    health = opened(Health(LIMITS))
    for _ in range(50):
        health.failed(ONE.id, 10)
    assert health.retry_in_ms(ONE, 10) == 990


def test_credentials_take_turns() -> None:
    health = Health(LIMITS)
    picked = [health.pick_credential(TWO, 0) for _ in range(4)]
    assert [credential and credential.id for credential in picked] == ["two-0", "two-1", "two-0", "two-1"]


def test_a_refused_credential_is_set_aside_and_reported_once() -> None:
    health = Health(LIMITS)
    assert health.credential_refused(TWO.id, "two-0", 401, 0)
    assert not health.credential_refused(TWO.id, "two-0", 401, 5)
    for _ in range(3):
        credential = health.pick_credential(TWO, 10)
        assert credential is not None
        assert credential.id == "two-1"
    assert health.credential_refused(TWO.id, "two-1", 402, 10)
    assert health.pick_credential(TWO, 10) is None
    assert 0 < health.retry_in_ms(TWO, 10) <= LIMITS.refused_ms
    assert health.pick_credential(TWO, 10 + LIMITS.refused_ms) is not None


def test_one_forbidden_prompt_does_not_cost_the_credential() -> None:
    health = Health(LIMITS)
    for _ in range(5):
        assert not health.credential_refused(ONE.id, "one-0", 403, 0)
        assert not health.credential_refused(ONE.id, "one-0", 403, 0)
        health.answered(ONE.id, "one-0")
    assert [health.credential_refused(ONE.id, "one-0", 403, 0) for _ in range(3)] == [False, False, True]
    assert health.pick_credential(ONE, 0) is None


def test_a_rate_limited_credential_cools_down_within_bounds() -> None:
    health = Health(LIMITS)
    health.credential_cooled(ONE.id, "one-0", 3_000, 0)
    assert health.pick_credential(ONE, 2_999) is None
    assert health.is_rate_limited(ONE, 2_999)
    assert health.pick_credential(ONE, 3_000) is not None
    health.credential_cooled(ONE.id, "one-0", 10**12, 3_000)
    assert health.retry_in_ms(ONE, 3_000) == LIMITS.cool_max_ms
    health.credential_cooled(ONE.id, "one-0", None, 3_000)
    assert health.retry_in_ms(ONE, 3_000) == LIMITS.cool_default_ms


def test_new_routing_makes_a_credential_new_when_it_was_taken_out_in_between() -> None:
    health = Health(LIMITS)
    health.credential_refused(ONE.id, "one-0", 401, 0)
    health.retain([ONE])
    assert health.pick_credential(ONE, 1) is None
    health.retain([TWO])
    health.retain([ONE])
    assert health.pick_credential(ONE, 1) is not None


class HealthMachine(RuleBasedStateMachine):
    """Whatever happens: every wait is bounded, and a half-open channel has one probe."""

    def __init__(self) -> None:
        super().__init__()
        self.health = Health(LIMITS)
        self.now_ms = 0

    @rule(passed_ms=st.integers(0, 5_000))
    def time_passes(self, passed_ms: int) -> None:
        self.now_ms += passed_ms

    @rule()
    def fails(self) -> None:
        self.health.failed(TWO.id, self.now_ms)

    @rule(credential=st.sampled_from(["two-0", "two-1"]))
    def answers(self, credential: str) -> None:
        self.health.answered(TWO.id, credential)
        assert self.health.may_try(TWO.id, self.now_ms)

    @rule(credential=st.sampled_from(["two-0", "two-1"]), status=st.sampled_from([401, 402, 403]))
    def refuses(self, credential: str, status: int) -> None:
        self.health.credential_refused(TWO.id, credential, status, self.now_ms)

    @rule(credential=st.sampled_from(["two-0", "two-1"]), wait_ms=st.none() | st.integers(-5, 10**7))
    def cools(self, credential: str, wait_ms: int | None) -> None:
        self.health.credential_cooled(TWO.id, credential, wait_ms, self.now_ms)

    @rule()
    def is_tried(self) -> None:
        state = self.health.channel_state(TWO.id, self.now_ms)
        first = self.health.may_try(TWO.id, self.now_ms)
        second = self.health.may_try(TWO.id, self.now_ms)
        assert not (state == "open" and first)
        assert not (state == "half_open" and second)
        assert state != "closed" or (first and second)

    @invariant()
    def every_wait_is_bounded(self) -> None:
        wait_ms = self.health.retry_in_ms(TWO, self.now_ms)
        assert (
            0
            <= wait_ms
            <= max(LIMITS.open_max_ms, LIMITS.probe_timeout_ms, LIMITS.refused_ms, LIMITS.cool_max_ms)
        )
        later_ms = self.now_ms + wait_ms
        assert wait_ms == 0 or self.health.retry_in_ms(TWO, later_ms) == 0


TestHealthMachine = HealthMachine.TestCase
TestHealthMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
