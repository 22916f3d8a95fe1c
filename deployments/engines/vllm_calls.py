"""What vLLM can do with a model, as our calls name it."""

from vllm.config import ModelConfig
from vllm.entrypoints.pooling.utils import enable_scoring_api
from vllm.tasks import SupportedTask

from cluster.calls import GENERATES, Task


def tasks_of(supported: tuple[SupportedTask, ...], config: ModelConfig) -> tuple[str, ...]:
    """What it can do, by the tasks that vLLM says a model has."""
    found: list[str] = [*GENERATES] if Task.GENERATE in supported else [Task.TOKENIZE]
    pooling = config.get_pooling_task(supported)
    if pooling is not None:
        found.append(Task.POOL)
    if pooling in (Task.EMBED, Task.CLASSIFY):  # of several, vLLM serves the one
        found.append(pooling)
    if enable_scoring_api(supported, config):
        found.append(Task.SCORE)
    if Task.TRANSCRIBE in supported:
        found.append(Task.TRANSCRIBE)
    return tuple(map(str, found))
