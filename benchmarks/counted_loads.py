"""Counts the adapters that a stock engine reads, for peers that do not say.

vLLM imports this module in its workers (`worker_extension_cls`); nothing else is changed there.
Each load adds a byte to the file that the environment names (`COUNT_IN`).
"""

import os
from pathlib import Path

from vllm.lora.lora_model import LoRAModel
from vllm.lora.request import LoRARequest
from vllm.lora.worker_manager import WorkerLoRAManager

from benchmarks.ray_serve_llm import COUNT_IN

_load = WorkerLoRAManager._load_adapter  # noqa: SLF001  (vLLM reads each adapter there)


class CountedLoads:
    """What vLLM adds to its worker's bases: nothing; that it imports this module is enough."""


def _counted(self: WorkerLoRAManager, lora_request: LoRARequest) -> LoRAModel:
    with Path(os.environ[COUNT_IN]).open("ab") as file:
        file.write(b".")
    return _load(self, lora_request)


WorkerLoRAManager._load_adapter = _counted  # noqa: SLF001
