"""What adapters must match, by the configs of base models of many kinds."""

import pytest

from cluster.settings import BaseModelSettings

pytestmark = pytest.mark.timeout(120)

TEXT = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}
EYES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "patch_size": 4}
QWEN_EYES = {"depth": 2, "hidden_size": 64, "intermediate_size": 96, "out_hidden_size": 64}
LANGUAGE = "model.language_model.layers.1.self_attn.q_proj"


def facts_of(kind: str, folder, **fields):
    import transformers

    from deployments.engines.base_facts import base_model_facts

    config = getattr(transformers, f"{kind}Config")(**fields)
    end = "ForCausalLM" if kind in TEXT_ONLY else "ForConditionalGeneration"
    config.architectures = [f"{kind}{end}"]
    config.save_pretrained(folder)
    return base_model_facts(BaseModelSettings(id="m", path=str(folder)), str(folder), config)


TEXT_ONLY = ("Llama", "Mixtral", "Qwen3Moe", "GptOss", "Olmoe", "Qwen2Moe")


@pytest.mark.parametrize(
    ("kind", "fields", "connector"),
    [
        ("Qwen2_5_VL", {"text_config": TEXT, "vision_config": QWEN_EYES}, "model.visual.merger"),
        ("Qwen3VL", {"text_config": TEXT, "vision_config": QWEN_EYES}, "model.visual.merger"),
        (
            "Llava",
            {
                "text_config": TEXT | {"model_type": "llama"},
                "vision_config": EYES | {"model_type": "clip_vision_model"},
            },
            "model.multi_modal_projector",
        ),
        ("Gemma3", {"text_config": TEXT, "vision_config": EYES}, "model.vision_tower"),
        (
            "Mistral3",
            {
                "text_config": TEXT | {"model_type": "mistral"},
                "vision_config": EYES | {"model_type": "pixtral"},
            },
            "model.multi_modal_projector",
        ),
    ],
)
def test_a_model_that_sees_is_read_as_the_class_that_its_checkpoint_names(
    tmp_path, kind, fields, connector
):
    facts = facts_of(kind, tmp_path, **fields)
    assert facts.architecture == f"{kind}ForConditionalGeneration"
    assert facts.linear_shapes[LANGUAGE] == (64, 64)
    assert facts.linear_shapes["lm_head"] == (512, 64)
    assert facts.embedding_shapes["model.language_model.embed_tokens"] == (512, 64)
    assert any(module.startswith(connector) for module in facts.linear_shapes)


@pytest.mark.parametrize(
    ("kind", "fields", "gate_up", "each"),
    [
        (
            "Mixtral",
            {"num_local_experts": 4},
            (192, 64),
            ("model.layers.0.block_sparse_moe.experts", ("w1", "w3", "w2")),
        ),
        (
            "Qwen3Moe",
            {"num_experts": 4, "moe_intermediate_size": 32},
            (64, 64),
            ("model.layers.0.mlp.experts", ("gate_proj", "up_proj", "down_proj")),
        ),
        (
            "Qwen2Moe",
            {"num_experts": 4, "moe_intermediate_size": 32},
            (64, 64),
            ("model.layers.0.mlp.experts", ("gate_proj", "up_proj", "down_proj")),
        ),
        (
            "Olmoe",
            {"num_experts": 4},
            (192, 64),
            ("model.layers.0.mlp.experts", ("gate_proj", "up_proj", "down_proj")),
        ),
        ("GptOss", {"num_local_experts": 4}, (192, 64), ("", ())),
    ],
)
def test_experts_are_known_stacked_and_one_by_one(tmp_path, kind, fields, gate_up, each):
    facts = facts_of(kind, tmp_path, **TEXT, **fields)
    experts = facts.experts["model.layers.0.mlp.experts"]
    assert experts.count == 4
    assert experts.gate_up == gate_up
    assert experts.down == (64, gate_up[0] // 2)
    assert (experts.each, experts.parts) == each


def test_the_fingerprint_is_the_one_that_older_releases_gave(tmp_path):
    """Versions keep it: another one for the same model would refuse them all."""
    (tmp_path / "tokenizer.json").write_text("{}")
    facts = facts_of("Llama", tmp_path, **TEXT)
    assert facts.fingerprint == "ead064b77f4d66c797f7b3ffb8b462086308ead32cbb84f6633e6c45bad7dcf4"


def test_what_the_engine_cannot_adapt_keeps_its_name():
    from cluster.adapters import BaseModelFacts
    from deployments.engines.base_facts import only_adaptable

    facts = BaseModelFacts(
        id="m",
        architecture="A",
        fingerprint="f",
        max_rank=8,
        linear_shapes={"q_proj": (8, 8), "eyes": (8, 8)},
    )
    kept = only_adaptable(facts, {"q_proj"})
    assert kept.linear_shapes.keys() == {"q_proj"}
    assert kept.closed_modules == ("eyes",)
