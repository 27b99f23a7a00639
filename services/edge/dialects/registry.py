"""Every endpoint that the gateway serves."""

from __future__ import annotations

from typing import Final

from services.edge.dialects.endpoint import Endpoint
from services.edge.dialects.openai_chat import CHAT_COMPLETIONS
from services.edge.dialects.openai_completions import COMPLETIONS
from services.edge.dialects.openai_embeddings import EMBEDDINGS
from services.edge.dialects.openai_moderations import MODERATIONS

ENDPOINTS: Final[tuple[Endpoint, ...]] = (CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS, MODERATIONS)
