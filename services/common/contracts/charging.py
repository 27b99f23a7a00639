"""What an edge and a meter say to each other about one charging session (WebSocket, msgpack).

A frame is an array of `(call_id, message)` pairs: whatever waits leaves together. Replies carry
the call's id and come in any order. Calls of one session are never outstanding twice; `seq`
counts them (1 = open). A meter keeps no session state, so an unanswered call is simply sent
again, to any meter: a higher `seq` than the last is executed, the same one gets the stored
answer, a lower one has no effect.

States of a session: `held -> streaming -> settled | released`; lease over: `orphaned -> settled`.
"""

from __future__ import annotations

import msgspec

from services.common.ids import AccountId, EdgeId, KeyHash, KeyId, SessionId
from services.common.money import PriceVector, TokenCounts

PROTOCOL_VERSION = 1


class InputFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """What bounds the input's tokens without a tokenizer. `body_bytes`: the JSON body's length.

    `image_count`: parts whose type names an image, at least. `image_bytes`: how much of the body is base64
    data inside them, which no model reads as text, at most. `file_count`: files, videos and earlier audio,
    whose tokens the body's size doesn't bound; 0: there are none.
    """

    body_bytes: int
    message_count: int = 0
    image_count: int = 0
    has_tools: bool = False
    file_count: int = 0
    image_bytes: int = 0


# --- calls: edge to meter ---------------------------------------------------------------------


class Resolve(msgspec.Struct, frozen=True, tag="resolve"):
    """Whose key is this? Answered with `KeyHint` or `Refused`. A hint only: `Open` authenticates."""

    key_hash: KeyHash


class Open(msgspec.Struct, frozen=True, tag="open", omit_defaults=True):
    """Admit a session: check the key's limits and hold what it may cost.

    `output_tokens_max`: the explicit limit per choice, or None. `choices`: `n` or `best_of`.
    `body`: the JSON body, sent when the meter asked for it (`CountWanted`) or is likely to; the
    meter counts it when the bound by bytes is too coarse for the money at hand.
    """

    session_id: SessionId
    seq: int
    edge_id: EdgeId
    key_hash: KeyHash
    endpoint: str
    model: str
    stream: bool
    facts: InputFacts
    output_tokens_max: int | None = None
    choices: int = 1
    client_address: str | None = None
    body: bytes | None = None


class SessionRef(msgspec.Struct, frozen=True):
    """Names an admitted session; comes from `Admitted` and goes along with every later call."""

    session_id: SessionId
    account_id: AccountId
    key_id: KeyId
    bucket: int
    epoch: int


class Extend(msgspec.Struct, frozen=True, tag="extend", omit_defaults=True):
    """Renew the lease and, when `want_output_tokens` exceeds what is granted, hold another slice.

    `want_output_tokens`: the session's total output, all choices, that the edge needs to be covered.
    `used_*`: the checkpoint that is charged should this edge never be heard of again.
    """

    ref: SessionRef
    seq: int
    want_output_tokens: int
    used_output_tokens: int = 0
    used_nanos: int = 0


class UsageRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """One finished session: what it used and costs. Becomes the ledger's usage row, once.

    `usage_source`: `upstream` (its own report), `counted` (ours), `checkpoint` (edge lost), `none`.
    `outcome`: `complete`, `client_gone`, `out_of_grant`, `upstream_failed`, `edge_lost`.
    `usage_json`: the upstream's usage object as received, at most 4 KiB.
    """

    session_id: SessionId
    account_id: AccountId
    key_id: KeyId
    edge_id: EdgeId
    endpoint: str
    model: str
    price_version: int
    ratio_ppm: int
    tokens: TokenCounts
    cost_nanos: int
    held_nanos: int
    stream: bool
    outcome: str
    usage_source: str
    channel_id: str = ""
    upstream_model: str = ""
    request_id: str = ""
    started_at_ms: int = 0
    first_byte_ms: int = 0
    duration_ms: int = 0
    usage_json: str = ""
    flags: tuple[str, ...] = ()


class Settle(msgspec.Struct, frozen=True, tag="settle"):
    """End a session and charge `record.cost_nanos`; the rest of the hold goes back."""

    ref: SessionRef
    seq: int
    record: UsageRecord


class Release(msgspec.Struct, frozen=True, tag="release"):
    """End a session that costs nothing. Releasing one that is unknown leaves a tombstone, so that
    a late `Open` of it is refused."""

    session_id: SessionId
    bucket: int
    seq: int
    reason: str


class CountInput(msgspec.Struct, frozen=True, tag="count_input"):
    """Count a request body exactly (no usage came from upstream)."""

    endpoint: str
    model: str
    body: bytes


class CountText(msgspec.Struct, frozen=True, tag="count_text"):
    """Count output texts, one per choice and field.

    With `final` false each text is counted up to a safe boundary only; the caller keeps the rest
    and sends it again in front of what comes next, so that the sum equals the whole text's count.
    """

    model: str
    texts: tuple[str, ...]
    final: bool


Call = Resolve | Open | Extend | Settle | Release | CountInput | CountText


# --- replies: meter to edge -------------------------------------------------------------------


class KeyHint(msgspec.Struct, frozen=True, tag="key_hint", omit_defaults=True):
    """`models`: ids this key may use, None: all."""

    key_id: KeyId
    account_id: AccountId
    bucket: int
    models: tuple[str, ...] | None = None


class RateLimitState(msgspec.Struct, frozen=True, omit_defaults=True):
    """For the `x-ratelimit-*` headers; limits that the key doesn't have are None."""

    requests_limit: int | None = None
    requests_remaining: int | None = None
    requests_reset_ms: int | None = None
    tokens_limit: int | None = None
    tokens_remaining: int | None = None
    tokens_reset_ms: int | None = None


class Admitted(msgspec.Struct, frozen=True, tag="admitted", omit_defaults=True):
    """The session holds `held_nanos`; it may deliver `granted_output_tokens` over all choices.

    `final`: no further slice can be had. `lease_ms`: counted by the edge from when it *sent* the
    call. `upstream_output_tokens_max`: must be written into the upstream request, per choice.
    `available_nanos`: the balance as of admission. `count_next`: send the body with the next
    `Open` of this key at once.
    """

    ref: SessionRef
    seq: int
    held_nanos: int
    granted_output_tokens: int
    output_tokens_bound: int
    final: bool
    lease_ms: int
    input_tokens: int
    input_exact: bool
    price: PriceVector
    price_version: int
    ratio_ppm: int
    available_nanos: int
    hidden_reasoning: bool = False
    upstream_output_tokens_max: int | None = None
    count_next: bool = False
    rate_limits: RateLimitState | None = None


class CountWanted(msgspec.Struct, frozen=True, tag="count_wanted"):
    """The bound by bytes does not fit: send the same `Open` again, next `seq`, with its body."""

    seq: int


class Refused(msgspec.Struct, frozen=True, tag="refused", omit_defaults=True):
    """Not admitted; nothing is held. Fields as in `services.common.errors`; `error`: the class's name."""

    error: str
    code: str
    message: str
    param: str | None = None
    retry_after_ms: int | None = None
    rate_limits: RateLimitState | None = None


class Extended(msgspec.Struct, frozen=True, tag="extended", omit_defaults=True):
    """As in `Admitted`. `ended`: why the session must end now (account or key disabled, epoch over,
    session unknown or already ended), else empty."""

    seq: int
    held_nanos: int
    granted_output_tokens: int
    final: bool
    lease_ms: int
    ended: str = ""


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """`state`: `settled` or `released`; the call that ended it may have been an earlier one."""

    seq: int
    state: str


class Counted(msgspec.Struct, frozen=True, tag="counted", omit_defaults=True):
    """`tokens[i]` in the first `consumed_chars[i]` characters of text i; for an input, one entry."""

    tokens: tuple[int, ...]
    consumed_chars: tuple[int, ...] = ()
    exact: bool = True


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The meter can't know (Redis or the ledger is away): nothing is sure; send it again or give up."""

    message: str


Reply = KeyHint | Admitted | CountWanted | Refused | Extended | Ended | Counted | Failed
