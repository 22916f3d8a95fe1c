"""Prepared adapters hold what vLLM's own loader would have made of peft's files."""

import json

import pytest
import torch

from adapter_store.files.blobs import CONFIG
from benchmarks.adapters import write_adapter
from cluster.adapters import BaseModelFacts

pytestmark = pytest.mark.vllm

SHAPES = {
    "model.layers.0.self_attn.q_proj": (24, 16),
    "model.layers.0.self_attn.v_proj": (8, 16),
    "model.layers.1.self_attn.q_proj": (24, 16),
}

FACTS = BaseModelFacts(id="m", architecture="A", fingerprint="f", max_rank=16, linear_shapes=SHAPES)


@pytest.fixture
def lora_config():
    from vllm.config.lora import LoRAConfig

    return LoRAConfig(max_lora_rank=16, max_loras=2, max_cpu_loras=2, lora_dtype=torch.bfloat16)


@pytest.fixture
def source(tmp_path):
    write_adapter(tmp_path / "peft", SHAPES, 8, ("q_proj", "v_proj"), seed=1)
    return tmp_path / "peft"


def vllms_own(source, lora_config):
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    model = LoRAModel.from_local_checkpoint(
        str(source),
        {"q_proj", "v_proj"},
        PEFTHelper.from_local_dir(str(source), None),
        lora_model_id=1,
        device="cpu",
        dtype=lora_config.lora_dtype,
    )
    for lora in model.loras.values():
        lora.optimize()
    return model.loras


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True, "lora_alpha": 3},
        {"alpha_pattern": {"v_proj": 5}, "lora_alpha": 7},
    ],
)
def test_it_is_bit_for_bit_what_vllm_makes(source, tmp_path, lora_config, changes, transposed):
    from deployments.engines import prepared

    config = json.loads((source / CONFIG).read_text()) | changes
    (source / CONFIG).write_text(json.dumps(config))
    prepared.write(source, tmp_path, FACTS, lora_config.lora_dtype, transpose_b=transposed)
    expected = vllms_own(source, lora_config)
    layers = list(prepared.read(tmp_path))
    assert len(layers) == len(expected) == len(SHAPES)
    for layer in layers:
        name = layer.name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        assert torch.equal(layer.a, expected[name].lora_a)
        assert torch.equal(layer.b, expected[name].lora_b)
