"""What the edge must know of an API endpoint, whatever its dialect.

An `Endpoint` is a small stateless declaration; `registry.py` lists them. A `ChunkReader` is the
state of one streamed reply.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from services.common.contracts.charging import InputFacts
from services.common.errors import MeterwayError
from services.common.money import TokenCounts
from services.edge.streams.texts import TextKey, TextTally


class Request(msgspec.Struct, frozen=True, gc=False):
    """What the gateway reads from a request body.

    `output_tokens_max`: the client's explicit limit per choice, None: it set none, 0: the endpoint has
    no output. `choices`: how many answers are generated (`n`, `best_of`, times the prompts).
    `wants_usage`: the client asked for the stream's usage chunk.
    """

    model: str
    stream: bool
    wants_usage: bool
    output_tokens_max: int | None
    choices: int
    facts: InputFacts


class UsageFacts(msgspec.Struct, frozen=True, gc=False):
    """An upstream's usage report, made sane: no count is negative, no subset exceeds its total.

    `tokens`: disjoint classes. `json`: the report as received, at most 4 KiB (else empty).
    `faults`: what had to be corrected (`not_a_number`, `negative`, `subset_too_large`,
    `absurd_count`, `reasoning_beside_output`, `total_exceeds_parts`, `incomplete`): a reason to count
    beside it.
    """

    tokens: TokenCounts
    json: str
    faults: tuple[str, ...] = ()


class UpstreamError(msgspec.Struct, frozen=True, gc=False):
    """An error object inside a reply. `code` and `type` are the upstream's own and may be empty. The message
    may name the operator's account or credential: for the log, not for the client."""

    message: str
    code: str
    type: str


class ChunkFacts(msgspec.Struct, frozen=True, gc=False):
    """What one event's data holds.

    `text_bytes`: UTF-8 bytes of new output text, an upper bound of its tokens (the text itself is in
    `ChunkReader.texts`). `has_usage`: `ChunkReader.usage` is new. `is_usage_only`: the event brings
    nothing but usage: to be dropped when the client did not ask for usage. `is_garbage`: not JSON,
    or no object (`: keepalive`): to be dropped, SDKs fail on it. `error`: the upstream failed, the
    stream is over.
    """

    text_bytes: int = 0
    has_usage: bool = False
    is_usage_only: bool = False
    is_done: bool = False
    is_garbage: bool = False
    error: UpstreamError | None = None


class PlainFacts(msgspec.Struct, frozen=True, gc=False):
    """What a plain (not streamed) reply holds. `texts`: output by choice and field, for a count of
    our own when `usage` is None. `is_garbage`: not a JSON object."""

    usage: UsageFacts | None
    texts: dict[TextKey, str]
    is_garbage: bool = False
    error: UpstreamError | None = None


class ChunkReader(Protocol):
    """Reads one streamed reply, event by event. About 200 bytes when idle, plus uncounted text."""

    @property
    def texts(self) -> TextTally:
        """Output text that is not counted exactly yet."""
        ...

    @property
    def usage(self) -> UsageFacts | None:
        """The last usage report. Parsed on each access."""
        ...

    def accept(self, data: bytes, name: bytes | None = None) -> ChunkFacts:
        """Read one event's `data` (`Event.data`, not None). Never raises: garbage is flagged."""
        ...

    @property
    def is_finished(self) -> bool:
        """Every choice seen so far has its finish reason (and at least one was seen)."""
        ...


class Endpoint(Protocol):
    """One endpoint of the API."""

    @property
    def name(self) -> str:
        """`chat.completions`, `completions`, `embeddings`, `moderations`: the contracts' `endpoint`."""
        ...

    @property
    def path(self) -> str:
        """Below the API's root (`/v1`) and below a channel's `base_url`: `/chat/completions`."""
        ...

    @property
    def kind(self) -> str:
        """`services.common.contracts.catalogue.Model.kind` that it serves."""
        ...

    @property
    def has_output(self) -> bool:
        """False where no output tokens are generated (embeddings, moderations)."""
        ...

    def read_request(self, body: bytes) -> Request:
        """Raises BadRequest (`param` set) when the body is no request the gateway can hold money for.

        `body`: raw JSON, not compressed. Fields that the gateway doesn't read pass untouched.
        """
        ...

    def upstream_body(
        self,
        body: bytes,
        *,
        model_rename: str | None = None,
        output_tokens_max: int | None = None,
        include_usage: bool = False,
    ) -> bytes:
        """`body` (one that `read_request` took) with the few bytes changed that must be; the same object
        when nothing does. `output_tokens_max` is written per choice, replacing the client's.
        `include_usage`: make the stream end with a usage chunk."""
        ...

    def chunk_reader(self) -> ChunkReader: ...

    def read_plain(self, body: bytes) -> PlainFacts:
        """Read a plain reply's body. Never raises."""
        ...

    def end_of_stream(
        self, reader: ChunkReader, error: MeterwayError | None, *, usage_json: bytes | None = None
    ) -> bytes:
        """The bytes that properly end a stream that the gateway cuts: for each choice without one a
        chunk with `finish_reason: "length"`, the usage chunk (when `usage_json` is given, see
        `usage_json_of`), `error` as an error event, and `[DONE]`."""
        ...

    def error_event(self, error: MeterwayError) -> bytes:
        """The bytes that end a stream in which something failed: an error event and `[DONE]`."""
        ...

    def usage_chunk(self, reader: ChunkReader, usage_json: bytes) -> bytes:
        """A usage-only event made by us, for a client that asked when the upstream sent none."""
        ...

    def usage_json_of(self, tokens: TokenCounts, cost_nanos: int) -> bytes:
        """A usage object in the dialect, from our own counts, with `cost_usd`."""
        ...

    def with_cost(self, data: bytes, cost_nanos: int) -> bytes:
        """An event's data or a plain reply's body with `"cost_usd": 0.0012` put into its usage object;
        the same object when it has none."""
        ...
