"""What comes of asking upstreams."""

from __future__ import annotations

import msgspec

from services.common.ids import ChannelId
from services.edge.dialects.endpoint import PlainFacts
from services.edge.upstreams.routing import Candidate
from services.edge.upstreams.transport import UpstreamReply


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One try, for metrics and the log. `outcome`: `answered`, `rejected` (the client's fault),
    `unknown_model`, `refused` (no connection), `timed_out`, `broken`, `credential_refused`, `rate_limited`,
    `server_error`, `garbage`, `too_large`, `abandoned` (the client left). `status`: 0 without a reply."""

    channel_id: ChannelId
    credential_id: str
    outcome: str
    status: int
    duration_ms: int


class CredentialRefused(msgspec.Struct, frozen=True, kw_only=True):
    """A credential that is set aside as of now (`status` 401, 402 or 403): to be reported to the ledger."""

    channel_id: ChannelId
    credential_id: str
    status: int


class RequestRejected(Exception):
    """The upstream says that the request is the client's fault (400, 404, 413, 422, ...).

    Pass `status`, `headers` and `body` (JSON in the API's error shape) to the client; it costs nothing.
    """

    def __init__(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        super().__init__(f"upstream status {status}")
        self.status = status
        self.body = body
        self.headers = headers


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An upstream that answers. `headers`: those that go to the client.

    Streamed: read `reply` to its end or close it; its first bytes were looked at and put back.
    Plain: `body` and `facts`; the reply is read to its end.
    """

    candidate: Candidate
    credential_id: str
    headers: dict[str, str]
    reply: UpstreamReply
    body: bytes = b""
    facts: PlainFacts | None = None
