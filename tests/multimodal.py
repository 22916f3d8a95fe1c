"""Run as a program: a tiny Qwen3-VL behind our engine, with adapters on its text and on its eyes.

Prints what the test wants to know, as JSON. It has a process of its own, whose PYTHONPATH names a
torchvision that others must not import.
"""

import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

from tests.adapter_kinds import Kind
from tests.engine_bench import Bench, engine_bench
from tests.tiny_model import VOCABULARY, words

SPECIAL = {
    "<|image_pad|>": 500,
    "<|video_pad|>": 501,
    "<|vision_start|>": 502,
    "<|vision_end|>": 503,
}
IMAGE = "".join(("<|vision_start|>", "<|image_pad|>", "<|vision_end|>"))
TEMPLATE = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }} {% else %}IMAGE {% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
).replace("IMAGE", IMAGE)


def write_model(folder: Path) -> None:
    import torch
    import transformers

    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 256,
        "initializer_range": 0.1,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
            "rope_theta": 10000.0,
        },
    }
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 2,
        "out_hidden_size": 64,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "deepstack_visual_indexes": [0],
        "num_position_embeddings": 64,
    }
    ids = dict(zip(("image_token_id", "video_token_id"), (500, 501), strict=True))
    ids |= {"vision_start_token_id": 502, "vision_end_token_id": 503}
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
    torch.manual_seed(0)
    model = transformers.Qwen3VLForConditionalGeneration(config)
    model.generation_config = transformers.GenerationConfig(eos_token_id=2)
    model.save_pretrained(folder)
    names = ("image_token", "video_token", "vision_bos_token", "vision_eos_token")
    tokenizer = words(SPECIAL, extra_special_tokens=dict(zip(names, SPECIAL, strict=True)))
    sizes = {
        "patch_size": 4,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": 64, "longest_edge": 1024},
    }
    transformers.Qwen3VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen3VLVideoProcessor(**sizes),
        chat_template=TEMPLATE,
    ).save_pretrained(folder)


def picture() -> str:
    from PIL import Image

    content = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 30, 30)).save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def about_picture(bench: Bench, model: str) -> Any:
    image = {"type": "image_url", "image_url": {"url": picture()}}
    body = {
        "model": model,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "w5 w17"}, image]}],
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": True,
    }
    answer = bench.runner.run(bench.ask("/v1/chat/completions", body))
    return answer["choices"][0]["logprobs"]["content"][0]["logprob"]


def main(folder: Path) -> None:
    found: dict[str, Any] = {}
    with engine_bench(folder, write_model, enable_tower_connector_lora=True) as bench:
        found["architecture"] = bench.facts.architecture
        found["closed"] = bench.facts.closed_modules
        language = r".*language_model.*\.(q_proj|v_proj|o_proj|up_proj|down_proj)"
        eyes = ["linear_fc1", "qkv"]
        for name, targets in {"text": language, "eyes": eyes}.items():
            made = bench.make(Kind(name, {"target_modules": targets}), name)
            expected = bench.of_peft(made)
            found[f"{name} notices"] = bench.register(made, name)
            pairs = zip(bench.answers, expected, strict=True)
            found[name] = max(abs(a - b) for a, b in pairs)
        found["picture"] = about_picture(bench, "tiny")
        with bench.loaded(folder / "eyes") as model:
            found["picture, other eyes"] = about_picture(bench, model)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
