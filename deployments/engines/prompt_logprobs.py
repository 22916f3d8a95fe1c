"""Log-probabilities of prompts, where an adapter is on the head.

vLLM computes the logits of one prompt at a time while its mapping is that of the rows to sample:
with an adapter on `lm_head` in a slot the values are wrong, and on CPU the engine dies when fewer
rows come than are mapped.
"""

from typing import Any

from vllm.v1.worker.gpu_model_runner import GPUModelRunner

_ask = GPUModelRunner._get_prompt_logprobs_dict  # noqa: SLF001  (of vLLM)


def install() -> None:
    """Have each prompt's computed with the adapter of its own request."""
    GPUModelRunner._get_prompt_logprobs_dict = _one_by_one  # noqa: SLF001


def _one_by_one(
    runner: Any, hidden_states: Any, num_scheduled_tokens: dict[str, int]
) -> dict[str, Any]:
    wanted = runner.num_prompt_logprobs
    if not wanted or not runner.lora_config:
        answers: dict[str, Any] = _ask(runner, hidden_states, num_scheduled_tokens)
        return answers
    slots = runner.lora_manager.slots
    wrappers = set(slots.punica_wrapper_mapping.values())
    answers = {}
    try:
        for request, count in list(wanted.items()):
            if request not in num_scheduled_tokens:
                continue  # not in this step; its adapter may have left its slot
            batch = runner.input_batch
            lora_id = int(batch.request_lora_mapping[batch.req_id_to_index[request]])
            for wrapper in wrappers:
                wrapper.prompt_of = slots.lora_index_to_id.index(lora_id) if lora_id else -1
            runner.num_prompt_logprobs = {request: count}
            answers |= _ask(runner, hidden_states, num_scheduled_tokens)
            if request not in runner.num_prompt_logprobs:  # that was all of it
                del wanted[request]
    finally:
        runner.num_prompt_logprobs = wanted
        for wrapper in wrappers:
            wrapper.prompt_of = None
    return answers
