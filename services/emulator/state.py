"""The state of one emulator, and what its handlers share."""

from typing import Final

from aiohttp import web

from services.emulator.ask import CountText, Kind, Refused
from services.emulator.log import EmissionLog, Row, key_hash
from services.emulator.script import Script
from services.emulator.wire import Watcher, Wire

_PREFIX: Final[dict[Kind, str]] = {
    "chat": "chatcmpl", "completion": "cmpl", "embedding": "emb", "moderation": "modr",
}  # fmt: skip


class Emulator:
    """The state of one emulator: who may call, its defaults, its log, its open answers."""

    def __init__(
        self,
        *,
        api_keys: frozenset[str] | None,
        models: frozenset[str] | None,
        defaults: Script,
        log: EmissionLog,
        count_text: CountText,
    ) -> None:
        self.api_keys = api_keys
        self.models = models
        self.start_defaults = defaults
        self.defaults = defaults
        # Set faults may hold for the next requests only: None means until they are changed.
        self.defaults_left: int | None = None
        self.log = log
        self.count_text = count_text
        self.watcher = Watcher()
        self.open: dict[str, Row] = {}
        self.wires: set[Wire] = set()
        # Set at shutdown, so that answers cut by it are not laid to their clients.
        self.stopping = False
        self._number = 0

    def next_id(self, kind: Kind) -> str:
        self._number += 1
        return f"{_PREFIX[kind]}-emulator{self._number:010d}"

    def next_defaults(self) -> Script:
        """The defaults for one request, counting down those set for a number of requests."""
        if self.defaults_left is None:
            return self.defaults
        if self.defaults_left == 0:
            self.defaults, self.defaults_left = self.start_defaults, None
            return self.defaults
        self.defaults_left -= 1
        return self.defaults

    def check_key(self, request: web.Request, row: Row) -> None:
        """Note whose key was sent. Raises Refused (401)."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        api_key = token.strip() if scheme.lower() == "bearer" else request.headers.get("api-key", "")
        row.api_key_hash = key_hash(api_key) if api_key else None
        if self.api_keys is not None and api_key not in self.api_keys:
            message = "Incorrect API key provided." if api_key else "You didn't provide an API key."
            raise Refused(401, message)

    def check_model(self, model: str) -> None:
        """Raises Refused (404) for a model outside the list this emulator is limited to."""
        if self.models is not None and model not in self.models:
            raise Refused(404, f"The model `{model}` does not exist.", param="model")


EMULATOR: Final = web.AppKey("emulator", Emulator)
