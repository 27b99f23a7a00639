"""The published counts of token_counts.json as requests, each with what we count for it."""

from __future__ import annotations

import base64
import copy
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.meter.counting import InputCount, count_chat_input
from services.meter.counting.images import patch_count
from services.meter.counting.models import counting_for

DATA: dict[str, Any] = json.loads((Path(__file__).parent / "token_counts.json").read_text("utf-8"))


@dataclass(frozen=True)
class Case:
    id: str
    kind: str  # "text", "functions", "tools" or "image"
    source: str
    model: str
    request: dict[str, Any]
    billed_tokens: int

    @property
    def counted(self) -> InputCount:
        return count_chat_input(self.model, self.request)

    @property
    def off(self) -> int:
        return self.counted.tokens - self.billed_tokens


def png_address(width: int, height: int) -> str:
    """A data URL with a PNG's header: all that a count reads of it."""
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">II", width, height)
    return "data:image/png;base64," + base64.b64encode(head + b"\x08\x06\x00\x00\x00" + bytes(40)).decode()


def image_message(text: str, size: tuple[int, int], detail: str) -> dict[str, Any]:
    image = {"type": "image_url", "image_url": {"url": png_address(*size), "detail": detail}}
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": text}, image]}]}


def chat_cases() -> list[Case]:
    """Every case with a request of its own."""
    found = []
    for case in DATA["cases"]:
        request = _with_image_headers(case["request"])
        kind = "text"
        if "image" in case["id"]:
            kind = "image"
        elif "functions" in request:
            kind = "functions"
        elif "tools" in request:
            kind = "tools"
        model = case["model"].split("/")[0]
        billed = case["prompt_tokens"]
        found.append(Case(case["id"], kind, case["source"], model, request, billed))
    return found


def reported_images() -> list[Case]:
    """What users report that an image cost, low and high detail apart."""
    found = []
    for report in DATA["image_billed_reports"]:
        width, height = map(int, report["image"].split("x"))
        if "text" not in report:
            # These reports don't give their text; one word is the least there can have been.
            request = image_message("hi", (width, height), "high")
            billed = report["prompt_tokens"]
            found.append(Case(f"{report['model']} {report['image']}", "image", "community", report["model"],
                              request, billed))  # fmt: skip
            continue
        for detail in ("low", "high"):
            request = image_message(report["text"], (width, height), detail)
            billed = report[f"prompt_tokens_{detail}"]
            found.append(Case(f"{report['model']} {report['image']} {detail}", "image", "community",
                              report["model"], request, billed))  # fmt: skip
    return found


def _with_image_headers(request: dict[str, Any]) -> dict[str, Any]:
    request = copy.deepcopy(request)
    for message in request["messages"]:
        for part in message["content"] if isinstance(message.get("content"), list) else []:
            image = part.get("image_url")
            if image and "width" in image:
                image["url"] = png_address(image.pop("width"), image.pop("height"))
    return request


def formula_images() -> list[tuple[str, int, int]]:
    """(what, published tokens, ours) of the formula's worked examples."""
    found = []
    for case in DATA["image_cases"]:
        size = (case["width"], case["height"])
        if "patches" in case["model"]:
            ours = patch_count(size)
        else:
            ours = counting_for(case["model"]).images.tokens(size, case["detail"])
        found.append((f"{case['model']} {size} {case['detail']}", case["image_tokens"], ours))
    return found
