import asyncio
from tests.integration.edge.conftest import *  # noqa
from services.edge.session import Session
import pytest
@pytest.mark.parametrize("noted", [True, False])
async def test_plateau(edge, books, monkeypatch, noted):
    if not noted:
        monkeypatch.setattr(Session, "note_delivery", lambda self, **k: None)
    response = await edge.chat("tokens=60000 padding_bytes=10", stream=True, max_tokens=60_000)
    for _ in range(5):
        await asyncio.sleep(0.5)
        async with edge.client.get(f"{edge.upstream_url}/emulator/open") as open_answers:
            (answer,) = (await open_answers.json())["answers"]
        print(noted, answer["tokens"][0])
    response.close()
