from __future__ import annotations

import gzip
import shutil
import threading
from pathlib import Path

import pytest
import tiktoken

from services.meter.counting import encodings
from services.meter.counting.encodings import ENCODING_NAMES, EncodingName, RanksDamaged, encoding, preload


@pytest.mark.parametrize(
    ("name", "vocabulary"),
    [("cl100k_base", 100277), ("o200k_base", 200019), ("p50k_base", 50281), ("r50k_base", 50257)],
)
def test_every_encoding_loads_from_its_bundled_file(name: EncodingName, vocabulary: int) -> None:
    assert encoding(name).n_vocab == vocabulary
    text = "It's 1,234 times \u4f60\u597d \U0001f600\n\n  def f(): pass"
    assert encoding(name).decode(encoding(name).encode_ordinary(text)) == text


def test_a_damaged_rank_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for file in encodings._RANKS_FOLDER.glob("*.gz"):
        shutil.copy(file, tmp_path)
    damaged = tmp_path / "r50k_base.tiktoken.gz"
    damaged.write_bytes(gzip.compress(gzip.decompress(damaged.read_bytes())[:-1] + b"8"))
    monkeypatch.setattr(encodings, "_RANKS_FOLDER", tmp_path)
    monkeypatch.setattr(encodings, "_loaded", {})
    with pytest.raises(RanksDamaged, match="r50k_base"):
        encoding("r50k_base")
    assert encoding("p50k_base").n_vocab == 50281


def test_threads_that_ask_at_once_get_the_same_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "_loaded", {})
    found: list[tiktoken.Encoding] = []
    threads = [threading.Thread(target=lambda: found.append(encoding("r50k_base"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len({id(one) for one in found}) == 1


def test_preloading_loads_what_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "_loaded", {})
    preload(["r50k_base"])
    assert list(encodings._loaded) == ["r50k_base"]


def test_loading_leaves_tiktokens_own_loader_alone() -> None:
    from tiktoken_ext import openai_public  # noqa: PLC0415

    for name in ENCODING_NAMES:
        encoding(name)
    assert openai_public.load_tiktoken_bpe is tiktoken.load.load_tiktoken_bpe
