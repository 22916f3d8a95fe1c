"""The CPU kernels against the definition, row by row; vLLM's stock kernels fail the same test."""

import pytest
import torch

pytestmark = pytest.mark.vllm

SLOTS, RANK, SIZE_IN, SIZES_OUT = 4, 8, 16, (12, 6)


@pytest.fixture(scope="module")
def mapping_class():
    from vllm.lora.layers import LoRAMapping

    return LoRAMapping


def make_wrapper(cls, mapping_class, rows: list[int], is_prefill: bool):
    """A wrapper for a batch in which row i uses the adapter in slot rows[i] (-1: none)."""
    wrapper = cls(max_num_batched_tokens=64, max_batches=64, device="cpu")
    ids = tuple(slot + 1 for slot in rows)
    mapping = mapping_class(index_mapping=ids, prompt_mapping=ids, is_prefill=is_prefill)
    wrapper.update_metadata(mapping, list(range(1, SLOTS + 1)), SLOTS, 100)
    return wrapper


def weights() -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    lora_a = tuple(torch.randn(SLOTS, 1, RANK, SIZE_IN) for _ in SIZES_OUT)
    lora_b = tuple(torch.randn(SLOTS, 1, size, RANK) for size in SIZES_OUT)
    return lora_a, lora_b


def reference(y, x, lora_a, lora_b, rows):
    out = y.clone()
    for i, slot in enumerate(rows):
        if slot >= 0:
            parts = [b[slot, 0] @ (a[slot, 0] @ x[i]) for a, b in zip(lora_a, lora_b, strict=True)]
            out[i] += torch.cat(parts)
    return out


def applied(cls, mapping_class, rows, is_prefill):
    torch.manual_seed(0)
    lora_a, lora_b = weights()
    x, y = torch.randn(len(rows), SIZE_IN), torch.randn(len(rows), sum(SIZES_OUT))
    expected = reference(y, x, lora_a, lora_b, rows)
    wrapper = make_wrapper(cls, mapping_class, rows, is_prefill)
    wrapper.add_lora_linear(y, x, lora_a, lora_b, 1.0, SIZES_OUT)
    return y, expected


@pytest.mark.parametrize("is_prefill", [False, True])
@pytest.mark.parametrize(
    "rows",
    [
        [-1, 0, 1, 2, 3],
        [3, 3, -1, 3, 0, -1],
        [-1, -1],
        [2],
        [0, 1, 0, 1, 0, -1, 1],
        [1] * 9 + [-1] * 3 + [0] * 4,
    ],
)
def test_every_row_gets_its_own_adapter_and_base_rows_get_none(mapping_class, rows, is_prefill):
    from deployments.lora_cpu import GroupedLora

    found, expected = applied(GroupedLora, mapping_class, rows, is_prefill)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [[-1, 0, 1, 2, 3], [3, 3, -1, 3, 0, -1]])
def test_the_two_halves_that_sharded_layers_call_make_the_same_product(mapping_class, rows):
    from deployments.lora_cpu import GroupedLora

    torch.manual_seed(0)
    lora_a, lora_b = weights()
    x, y = torch.randn(len(rows), SIZE_IN), torch.randn(len(rows), sum(SIZES_OUT))
    expected = reference(y, x, lora_a, lora_b, rows)
    wrapper = make_wrapper(GroupedLora, mapping_class, rows, is_prefill=False)
    halves = torch.zeros(len(SIZES_OUT), len(rows), RANK)
    wrapper.add_shrink(halves, x, lora_a, 1.0)
    wrapper.add_expand(y, halves, lora_b, SIZES_OUT, add_inputs=True)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


def test_the_stock_kernels_give_base_rows_another_adapter(mapping_class):
    """Why the plugin exists; when this fails, vLLM has mended it and the plugin may go."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    found, expected = applied(PunicaWrapperCPU, mapping_class, [-1, 0, 1, 2, 3], False)
    torch.testing.assert_close(found[1:], expected[1:], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[0], expected[0], atol=1e-2)


def test_logits_use_the_rows_of_the_sampler(mapping_class):
    from deployments.lora_cpu import GroupedLora

    torch.manual_seed(0)
    rows = [-1, 2, 2, 0]
    (lora_a, _), (lora_b, _) = weights()
    x, y = torch.randn(4, SIZE_IN), torch.randn(4, SIZES_OUT[0])
    expected = reference(y, x, (lora_a,), (lora_b,), rows)
    wrapper = make_wrapper(GroupedLora, mapping_class, rows, is_prefill=False)
    wrapper.add_lora_logits(y, x, lora_a, lora_b, 1.0)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


def test_a_vllm_of_another_shape_is_refused(monkeypatch):
    import vllm

    from deployments import vllm_plugin

    monkeypatch.setattr(vllm, "__version__", "0.99.0")
    with pytest.raises(RuntimeError, match=r"vLLM is 0\.99\.0"):
        vllm_plugin.register()


def test_the_plugin_is_on_by_itself():
    from vllm.platforms import current_platform
    from vllm.plugins import load_general_plugins

    from deployments import vllm_plugin

    load_general_plugins()
    assert current_platform.get_punica_wrapper() == vllm_plugin.WRAPPER
