"""Which channels and credentials are worth trying. Pure: the clock is handed in (`now_ms`, monotonic).

A channel's breaker: `closed`; after some failures in a row `open` for a time that doubles up to a bound;
then `half_open`: one probe at a time, whose success closes it. A credential that was refused is set
aside; one that was rate limited cools down. Both come back by themselves after a bounded time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from services.common.contracts.catalogue import Channel, ChannelCredential
from services.common.ids import ChannelId


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthLimits:
    failures_to_open: int = 5
    open_first_ms: int = 1_000
    open_max_ms: int = 30_000
    probe_timeout_ms: int = 60_000
    cool_default_ms: int = 5_000
    cool_max_ms: int = 120_000
    refused_ms: int = 600_000
    forbidden_to_refuse: int = 3
    """A 403 may be about one prompt (moderation): only several in a row speak against the credential."""


class _ChannelState(msgspec.Struct):
    failures: int = 0
    opened: int = 0
    open_until_ms: int = 0
    probing_until_ms: int = 0
    next_credential: int = 0


class _CredentialState(msgspec.Struct):
    refused_until_ms: int = 0
    cooled_until_ms: int = 0
    forbidden: int = 0


class Health:
    """Channel and credential states of one edge."""

    def __init__(self, limits: HealthLimits | None = None) -> None:
        self.limits = limits or HealthLimits()
        self._channels: dict[ChannelId, _ChannelState] = {}
        self._credentials: dict[tuple[ChannelId, str], _CredentialState] = {}

    def retain(self, channels: Iterable[Channel]) -> None:
        """Forget what new routing no longer has."""
        channels = tuple(channels)
        known = {channel.id for channel in channels}
        pairs = {(channel.id, credential.id) for channel in channels for credential in channel.credentials}
        self._channels = {key: state for key, state in self._channels.items() if key in known}
        self._credentials = {key: state for key, state in self._credentials.items() if key in pairs}

    def may_try(self, channel_id: ChannelId, now_ms: int) -> bool:
        """Whether the channel's breaker lets a request through. Takes the probe when it is half open."""
        state = self._channels.get(channel_id)
        if state is None or not state.opened:
            return True
        if now_ms < state.open_until_ms or now_ms < state.probing_until_ms:
            return False
        state.probing_until_ms = now_ms + self.limits.probe_timeout_ms
        return True

    def pick_credential(self, channel: Channel, now_ms: int) -> ChannelCredential | None:
        """The channel's usable credentials take turns; None: none is usable now."""
        state = self._channel(channel.id)
        count = len(channel.credentials)
        for offset in range(count):
            index = (state.next_credential + offset) % count
            credential = channel.credentials[index]
            if self._usable_at_ms(channel.id, credential.id) <= now_ms:
                state.next_credential = (index + 1) % count
                return credential
        return None

    def credential_is_usable(self, channel_id: ChannelId, credential_id: str, now_ms: int) -> bool:
        return self._usable_at_ms(channel_id, credential_id) <= now_ms

    def answered(self, channel_id: ChannelId, credential_id: str) -> None:
        """The upstream answered the request (a client's fault counts too): the breaker closes."""
        state = self._channels.get(channel_id)
        if state is not None and (state.failures or state.opened):
            state.failures = state.opened = state.open_until_ms = state.probing_until_ms = 0
        credential = self._credentials.get((channel_id, credential_id))
        if credential is not None:
            credential.forbidden = 0

    def abandoned(self, channel_id: ChannelId) -> None:
        """The request was given up (client gone, credential refused) and says nothing of the channel."""
        state = self._channels.get(channel_id)
        if state is not None:
            state.probing_until_ms = 0

    def failed(self, channel_id: ChannelId, now_ms: int) -> None:
        """No connection, a timeout, a 5xx, garbage."""
        state = self._channel(channel_id)
        state.failures += 1
        state.probing_until_ms = 0
        if state.opened == 0 and state.failures < self.limits.failures_to_open:
            return
        if now_ms < state.open_until_ms:
            return  # requests that began before it opened must not lengthen it
        open_ms = min(self.limits.open_first_ms << min(state.opened, 20), self.limits.open_max_ms)
        state.opened += 1
        state.open_until_ms = now_ms + open_ms

    def credential_refused(self, channel_id: ChannelId, credential_id: str, status: int, now_ms: int) -> bool:
        """401, 402 or 403. True when this sets the credential aside now: to be reported to the ledger."""
        state = self._credential(channel_id, credential_id)
        self.abandoned(channel_id)
        if status == 403:
            state.forbidden += 1
            if state.forbidden < self.limits.forbidden_to_refuse:
                return False
        newly = state.refused_until_ms <= now_ms
        state.refused_until_ms = now_ms + self.limits.refused_ms
        return newly

    def credential_cooled(
        self, channel_id: ChannelId, credential_id: str, retry_after_ms: int | None, now_ms: int
    ) -> None:
        """429: leave the credential alone for `retry_after_ms`, within bounds."""
        self.abandoned(channel_id)
        wanted_ms = self.limits.cool_default_ms if retry_after_ms is None else retry_after_ms
        state = self._credential(channel_id, credential_id)
        state.cooled_until_ms = now_ms + max(0, min(wanted_ms, self.limits.cool_max_ms))

    def retry_in_ms(self, channel: Channel, now_ms: int) -> int:
        """How long until the channel may be tried again; 0: now."""
        state = self._channels.get(channel.id)
        channel_at_ms = max(state.open_until_ms, state.probing_until_ms) if state and state.opened else 0
        credential_at_ms = min(
            (self._usable_at_ms(channel.id, credential.id) for credential in channel.credentials),
            default=now_ms,
        )
        return max(0, channel_at_ms - now_ms, credential_at_ms - now_ms)

    def is_rate_limited(self, channel: Channel, now_ms: int) -> bool:
        """Whether nothing but cooling credentials keeps the channel from being tried."""
        state = self._channels.get(channel.id)
        if state is not None and state.opened and now_ms < state.open_until_ms:
            return False
        states = [self._credentials.get((channel.id, credential.id)) for credential in channel.credentials]
        return any(
            state is not None and state.refused_until_ms <= now_ms < state.cooled_until_ms for state in states
        )

    def channel_state(self, channel_id: ChannelId, now_ms: int) -> str:
        """`closed`, `open` or `half_open`, for metrics."""
        state = self._channels.get(channel_id)
        if state is None or not state.opened:
            return "closed"
        return "open" if now_ms < state.open_until_ms else "half_open"

    def _usable_at_ms(self, channel_id: ChannelId, credential_id: str) -> int:
        state = self._credentials.get((channel_id, credential_id))
        return max(state.refused_until_ms, state.cooled_until_ms) if state is not None else 0

    def _channel(self, channel_id: ChannelId) -> _ChannelState:
        state = self._channels.get(channel_id)
        if state is None:
            state = self._channels[channel_id] = _ChannelState()
        return state

    def _credential(self, channel_id: ChannelId, credential_id: str) -> _CredentialState:
        key = (channel_id, credential_id)
        state = self._credentials.get(key)
        if state is None:
            state = self._credentials[key] = _CredentialState()
        return state
