"""The CPU kernels against the definition, row by row; vLLM's stock kernels fail the same test."""

import pytest
import torch

from deployments.process.ray_options import IN_REPLICA

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


def weights(dtype=torch.float32, rank=RANK, size_in=SIZE_IN, sizes=SIZES_OUT):
    """A and B for every slot, as they lie in an engine, and a layer whose ranks are all in use."""
    from deployments.engines import lora_cpu

    lora_a = tuple(torch.randn(SLOTS, 1, rank, size_in).to(dtype) for _ in sizes)
    lora_b = tuple(torch.randn(SLOTS, 1, rank, n).to(dtype).transpose(2, 3) for n in sizes)
    ranks = torch.full((SLOTS, len(sizes)), rank, dtype=torch.int32)
    lora_cpu.set_ranks(lora_a[0], lora_b[0], ranks)
    return lora_a, lora_b, ranks


def reference(y, x, lora_a, lora_b, rows):
    out = y.clone()
    for i, slot in enumerate(rows):
        if slot >= 0:
            parts = [b[slot, 0] @ (a[slot, 0] @ x[i]) for a, b in zip(lora_a, lora_b, strict=True)]
            out[i] += torch.cat(parts)
    return out


def applied(cls, mapping_class, rows, is_prefill):
    torch.manual_seed(0)
    lora_a, lora_b, _ = weights()
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
    from deployments.engines.lora_cpu import GroupedLora

    found, expected = applied(GroupedLora, mapping_class, rows, is_prefill)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [[-1, 0, 1, 2, 3], [3, 3, -1, 3, 0, -1]])
def test_the_two_halves_that_sharded_layers_call_make_the_same_product(mapping_class, rows):
    from deployments.engines.lora_cpu import GroupedLora

    torch.manual_seed(0)
    lora_a, lora_b, _ = weights()
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
    from deployments.engines.lora_cpu import GroupedLora

    torch.manual_seed(0)
    rows = [-1, 2, 2, 0]
    (lora_a,), (lora_b,), _ = weights(sizes=SIZES_OUT[:1])
    x, y = torch.randn(4, SIZE_IN), torch.randn(4, SIZES_OUT[0])
    expected = reference(y, x, (lora_a,), (lora_b,), rows)
    wrapper = make_wrapper(GroupedLora, mapping_class, rows, is_prefill=False)
    wrapper.add_lora_logits(y, x, lora_a, lora_b, 1.0)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(params=["the one in use", "without a compiler"])
def linear(request):
    """The operator as it runs here, compiled where there is a compiler, and its fallback."""
    from deployments.engines import lora_cpu

    if request.param == "without a compiler":
        return lora_cpu.linear_by_groups
    return torch.ops.roundhouse.lora_linear


def packed(mapping_class, rows: list[int]) -> torch.Tensor:
    from deployments.engines.lora_cpu import GroupedLora

    return make_wrapper(GroupedLora, mapping_class, rows, is_prefill=True).token_batch


def test_this_machine_compiles_the_kernel():
    """So that the tests of the operator are tests of the kernel; CI has a compiler."""
    from deployments.engines import lora_cpu

    assert lora_cpu.KERNEL == "compiled"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [1, 3, 8, 17])
@pytest.mark.parametrize(("size_in", "sizes"), [(16, (12, 6)), (576, (576, 192, 192)), (37, (65,))])
def test_any_shape_and_rank(mapping_class, linear, dtype, rank, size_in, sizes):
    torch.manual_seed(0)
    rows = [-1, 0, 3, 3, 1, -1, *[2] * 37, 0]
    lora_a, lora_b, _ = weights(dtype, rank, size_in, sizes)
    x = torch.randn(len(rows), size_in).to(dtype)
    y = torch.randn(len(rows), sum(sizes)).to(dtype)
    wide = [t.float() for t in lora_a], [t.float() for t in lora_b]
    expected = reference(y.float(), x.float(), *wide, rows)
    before = y.clone()
    linear(y, x, lora_a, lora_b, packed(mapping_class, rows), 1.0)
    # Rounding of the product in between, and of the result, to 8 bits of mantissa.
    close = 1e-4 if dtype is torch.float32 else 2**-6
    scale = expected.abs().max()
    torch.testing.assert_close(y.float() / scale, expected / scale, rtol=0, atol=close)
    base = torch.tensor(rows) == -1
    assert torch.equal(y[base], before[base]), "base rows are not touched at all"


def test_only_the_rank_in_use_is_read(mapping_class, linear):
    """What an earlier adapter left behind, beyond the rank or in a layer, is never seen."""
    torch.manual_seed(0)
    rows = [0, 1, 2, 1]
    lora_a, lora_b, ranks = weights()
    ranks[:] = torch.tensor([[8, 3], [0, 5], [0, 0], [8, 8]])
    for slot in range(SLOTS):
        for part, rank in enumerate(ranks[slot]):
            lora_a[part][slot, 0, rank:] = torch.nan
            lora_b[part][slot, 0, :, rank:] = torch.nan
    clean_a = tuple(t.nan_to_num(0) for t in lora_a)
    clean_b = tuple(t.nan_to_num(0) for t in lora_b)
    x, y = torch.randn(len(rows), SIZE_IN), torch.randn(len(rows), sum(SIZES_OUT))
    expected = reference(y, x, clean_a, clean_b, rows)
    linear(y, x, lora_a, lora_b, packed(mapping_class, rows), 1.0)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


def test_the_scale_is_applied(mapping_class, linear):
    torch.manual_seed(0)
    lora_a, lora_b, _ = weights()
    x, y = torch.randn(2, SIZE_IN), torch.zeros(2, sum(SIZES_OUT))
    expected = 0.5 * reference(y, x, lora_a, lora_b, [0, 1])
    linear(y, x, lora_a, lora_b, packed(mapping_class, [0, 1]), 0.5)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


def test_the_operator_stays_whole_under_torch_compile(mapping_class):
    """The groups of a step are data: a graph traced with one batch serves the next."""
    from deployments.engines.lora_cpu import GroupedLora

    torch.manual_seed(0)
    lora_a, lora_b, _ = weights()
    wrapper = make_wrapper(GroupedLora, mapping_class, [0, 1, -1], is_prefill=True)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def layer(x, y):
        y = y + 1
        wrapper.add_lora_linear(y, x, lora_a, lora_b, 1.0, SIZES_OUT)
        return y

    for rows in ([0, 1, -1], [2, -1, 3]):
        ids = tuple(slot + 1 for slot in rows)
        mapping = mapping_class(index_mapping=ids, prompt_mapping=ids, is_prefill=True)
        wrapper.update_metadata(mapping, list(range(1, SLOTS + 1)), SLOTS, 100)
        x, y = torch.randn(3, SIZE_IN), torch.randn(3, sum(SIZES_OUT))
        expected = reference(y + 1, x, lora_a, lora_b, rows)
        torch.testing.assert_close(layer(x, y), expected, rtol=1e-4, atol=1e-4)


def test_without_a_compiler_the_reason_is_told(monkeypatch):
    from deployments.engines import lora_kernel

    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(lora_kernel.KernelUnavailable, match=r"no-such-compiler.*install g\+\+"):
        lora_kernel.ensure_built()


def test_a_compiler_that_fails_leaves_nothing(monkeypatch, tmp_path):
    from deployments.engines import lora_kernel

    monkeypatch.setenv("ROUNDHOUSE_CACHE", str(tmp_path))
    broken = tmp_path / "broken.cpp"
    broken.write_text("this is no C++")
    monkeypatch.setattr(lora_kernel, "SOURCE", broken)
    with pytest.raises(lora_kernel.KernelUnavailable, match="error"):
        lora_kernel.ensure_built()
    assert not list(tmp_path.rglob("*.so"))


def test_a_vllm_of_another_shape_is_refused(monkeypatch):
    import vllm

    from deployments.engines import vllm_plugin

    monkeypatch.setattr(vllm, "__version__", "0.99.0")
    with pytest.raises(RuntimeError, match=r"vLLM is 0\.99\.0"):
        vllm_plugin.register()


@pytest.mark.parametrize(
    ("cls", "method"),
    [
        ("vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU", "add_lora_linear"),
        ("vllm.lora.worker_manager.LRUCacheWorkerLoRAManager", "_load_adapter"),
        ("vllm.lora.model_manager.LRUCacheLoRAModelManager", "activate_adapter"),
    ],
)
def test_a_method_of_another_shape_is_refused(monkeypatch, cls, method):
    from deployments.engines import vllm_plugin

    def of_another_shape(self, something_new): ...

    monkeypatch.setattr(f"{cls}.{method}", of_another_shape)
    with pytest.raises(RuntimeError, match=rf"{method} takes.*something_new.*lock files"):
        vllm_plugin.register()


def test_on_gpus_only_our_own_replicas_are_changed(monkeypatch):
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
    from vllm.platforms import current_platform
    from vllm.v1.worker import lora_model_runner_mixin

    from deployments.engines import vllm_plugin
    from deployments.engines.vllm_lora import AdapterLoader

    place = "LRUCacheWorkerLoRAManager"
    monkeypatch.setattr(lora_model_runner_mixin, place, LRUCacheWorkerLoRAManager)
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda _self: False)
    monkeypatch.setattr(
        type(current_platform), "get_punica_wrapper", classmethod(lambda _cls: "vllm's")
    )
    monkeypatch.delenv(IN_REPLICA, raising=False)
    vllm_plugin.register()
    assert getattr(lora_model_runner_mixin, place) is LRUCacheWorkerLoRAManager
    monkeypatch.setenv(IN_REPLICA, "1")
    vllm_plugin.register()
    assert getattr(lora_model_runner_mixin, place) is AdapterLoader
    assert current_platform.get_punica_wrapper() == "vllm's", "no kernel is touched"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_types_take_the_way_without_the_kernel(mapping_class, dtype):
    from deployments.engines.lora_cpu import GroupedLora

    torch.manual_seed(0)
    rows = [-1, 2, 2, 0]
    lora_a, lora_b, _ = weights(dtype)
    x = torch.randn(4, SIZE_IN).to(dtype)
    y = torch.randn(4, sum(SIZES_OUT)).to(dtype)
    expected = reference(y, x, lora_a, lora_b, rows)
    wrapper = make_wrapper(GroupedLora, mapping_class, rows, is_prefill=False)
    wrapper.add_lora_linear(y, x, lora_a, lora_b, 1.0, SIZES_OUT)
    torch.testing.assert_close(y, expected, rtol=1e-2, atol=5e-2)


def test_more_rows_than_were_mapped_are_refused(mapping_class):
    """Memory safety: the kernel writes where the mapping says."""
    lora_a, lora_b, _ = weights()
    x, y = torch.randn(2, SIZE_IN), torch.randn(2, sum(SIZES_OUT))
    with pytest.raises(RuntimeError, match="more rows mapped than given"):
        torch.ops.roundhouse.lora_linear(
            y, x, lora_a, lora_b, packed(mapping_class, [0, 1, 2]), 1.0
        )


def test_the_plugin_is_on_by_itself():
    from vllm.platforms import current_platform
    from vllm.plugins import load_general_plugins

    from deployments.engines import vllm_plugin

    load_general_plugins()
    assert current_platform.get_punica_wrapper() == vllm_plugin.WRAPPER
