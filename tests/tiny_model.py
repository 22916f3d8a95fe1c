"""A random Llama that starts in seconds, with four heads so that two workers can share it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

VOCABULARY = 512


def write_tiny_model(folder: Path) -> dict[str, tuple[int, int]]:
    """Write a checkpoint whose words are `w0` to `w511`; returns the shapes of linear layers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config)
    head = model.get_output_embeddings()
    write_random(folder, model)
    return {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def write_random(folder: Path, model: Any) -> None:
    """Write the checkpoint of a model with random weights, the tokenizer, and a chat template."""
    model.save_pretrained(folder)
    words().save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")


def words(special: Mapping[str, int] | None = None, **fields: Any) -> Any:
    """A tokenizer of the words `w0` to `w511`, some of which may be special."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    names = {number: name for name, number in (special or {}).items()}
    vocabulary = {names.get(i, f"w{i}"): i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(n, normalized=False) for n in names.values()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="w0", bos_token="w1", eos_token="w2", **fields
    )
