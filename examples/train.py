"""Trains the adapters of the demo world: one LoRA adapter for each skill.

The loss covers the answer and its end-of-turn token only. Prompts go through the tokenizer's chat
template exactly as a chat endpoint applies it, so what is trained is what is served.
"""

import json
import math
import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Annotated, NamedTuple

import torch
import typer
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy, pad
from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

from examples.base_model import default_cache_dir, prepare_base_model
from examples.skills import SKILLS
from examples.skills.common import Example, Skill, split

ADAPTERS = Path(__file__).parent / "adapters"
PUBLIC_BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
RANK = 8
TARGET_MODULES = ["k_proj", "o_proj", "q_proj", "v_proj"]
LEARNING_RATE = 2e-3
TEST_SIZE = 120
CARD_EXAMPLES = 200
# Every third held-out example: the set begins with the wordings that were never trained on.
CARD_EVALUATION_STRIDE = 3
IGNORED = -100


class Run(NamedTuple):
    """How one adapter is trained: with the same numbers it comes out the same."""

    examples: int
    epochs: int
    batch_size: int
    seed: int

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return math.ceil(self.examples / self.batch_size) * self.epochs

    def command(self, skill: str) -> str:
        """The command line that repeats this run."""
        return (
            f"python -m examples.train {skill} --examples {self.examples} "
            f"--epochs {self.epochs} --batch-size {self.batch_size} --seed {self.seed}"
        )


class Encoded(NamedTuple):
    """Token ids of prompt and answer, and how many of them are prompt."""

    ids: list[int]
    prompt_length: int


class Batch(NamedTuple):
    """Right-padded tensors of shape (examples, tokens); `labels` is IGNORED but for answers."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor


def encode(tokenizer, example: Example) -> Encoded:
    """The chat prompt, then the answer and the end-of-turn token."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": example.prompt}],
        add_generation_prompt=True,
        return_dict=False,
    )
    answer = tokenizer(example.answer, add_special_tokens=False).input_ids
    return Encoded([*prompt, *answer, tokenizer.eos_token_id], len(prompt))


def batches(examples: Sequence[Encoded], size: int, rng: random.Random) -> list[list[Encoded]]:
    """Batches of similar lengths, to waste little on padding, in random order."""
    shuffled = rng.sample(examples, len(examples))
    shuffled.sort(key=lambda encoded: len(encoded.ids))
    found = [shuffled[i : i + size] for i in range(0, len(shuffled), size)]
    return rng.sample(found, len(found))


def collate(examples: Sequence[Encoded]) -> Batch:
    """Pads on the right; padding is masked, so its token id does not matter."""
    shape = len(examples), max(len(encoded.ids) for encoded in examples)
    batch = Batch(
        torch.zeros(shape, dtype=torch.long),
        torch.zeros(shape, dtype=torch.long),
        torch.full(shape, IGNORED),
    )
    for row, (ids, prompt_length) in enumerate(examples):
        batch.input_ids[row, : len(ids)] = torch.tensor(ids)
        batch.attention_mask[row, : len(ids)] = 1
        batch.labels[row, prompt_length : len(ids)] = torch.tensor(ids[prompt_length:])
    return batch


def answer_loss(model, prefix: Sequence[int], batch: Batch) -> torch.Tensor:
    """Mean cross-entropy of the answer tokens; only their logits are computed.

    `prefix` holds the tokens that come before every row (the system message): its keys and values
    are computed once for the batch, gradients included.
    """
    causal_lm = model.get_base_model()
    cache = causal_lm.model(input_ids=torch.tensor([prefix]), use_cache=True).past_key_values
    cache.batch_repeat_interleave(len(batch.input_ids))
    hidden = causal_lm.model(
        input_ids=batch.input_ids,
        attention_mask=pad(batch.attention_mask, (len(prefix), 0), value=1),
        past_key_values=cache,
    ).last_hidden_state
    targets = batch.labels[:, 1:]
    answers = targets != IGNORED
    return cross_entropy(causal_lm.lm_head(hidden[:, :-1][answers]).float(), targets[answers])


def common_prefix(rows: Sequence[Sequence[int]]) -> Sequence[int]:
    """The tokens that all rows begin with."""
    shortest = min(rows, key=len)
    for i, token in enumerate(shortest):
        if any(row[i] != token for row in rows):
            return shortest[:i]
    return shortest


def fit(model, examples: Sequence[Encoded], run: Run) -> Iterator[float]:
    """Trains in place with AdamW, warm-up and cosine decay; yields the loss of every step."""
    rng = random.Random(run.seed)
    prefix = common_prefix([encoded.ids for encoded in examples])
    rest = [Encoded(e.ids[len(prefix) :], e.prompt_length - len(prefix)) for e in examples]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, run.steps // 20, run.steps)
    model.train()
    for _ in range(run.epochs):
        for batch in batches(rest, run.batch_size, rng):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = answer_loss(model, prefix, collate(batch))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            yield loss.item()


def new_adapter(base_model: Path, seed: int):
    """The frozen bfloat16 base model with a fresh float32 adapter.

    For rows this short, plain attention is faster on a CPU than the fused kernel.
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(
        base_model, dtype=torch.bfloat16, attn_implementation="eager"
    )
    config = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules=TARGET_MODULES, task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)


def save_adapter(model, folder: Path) -> None:
    """Weights in bfloat16 and a plain peft configuration that names the public base model."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in get_peft_model_state_dict(model).items()
    }
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config["default"].to_dict()
    config |= {
        "base_model_name_or_path": PUBLIC_BASE_MODEL,
        "inference_mode": True,
        "target_modules": TARGET_MODULES,
    }
    write_json(folder / "adapter_config.json", dict(sorted(config.items())))


def write_json(path: Path, content: object) -> None:
    """Readable JSON that ends with a newline."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_eval(path: Path, examples: Sequence[Example]) -> None:
    """The held-out examples, one JSON object a line."""
    lines = (json.dumps({"prompt": e.prompt, "answer": e.answer}) for e in examples)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def card(
    skill: Skill,
    train: Sequence[Example],
    test: Sequence[Example],
    training: dict[str, object],
) -> dict[str, object]:
    """The adapter's model card: what it is for, prompts it was trained on, held-out prompts that a
    rollout asks of a new version, how it was made."""
    return {
        "name": skill.NAME,
        "description": skill.DESCRIPTION,
        "base_model": "smollm2-135m",
        "license": "Apache-2.0",
        "examples": list(dict.fromkeys(example.prompt for example in train))[:CARD_EXAMPLES],
        "evaluation": [
            {"prompt": e.prompt, "expected": e.answer} for e in test[::CARD_EVALUATION_STRIDE]
        ],
        "metadata": {"training": training},
    }


def train_skill(skill: Skill, base_model: Path, out: Path, run: Run, progress: Progress) -> None:
    """Trains one adapter and writes its folder."""
    train, test = split(skill, run.examples, TEST_SIZE, run.seed)
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    encoded = [encode(tokenizer, example) for example in train]
    model = new_adapter(base_model, run.seed)
    started = time.monotonic()
    task = progress.add_task(skill.NAME, total=run.steps, loss="")
    recent: deque[float] = deque(maxlen=20)
    for loss in fit(model, encoded, run):
        recent.append(loss)
        progress.update(task, advance=1, loss=f"loss {fmean(recent):.3f}")
    save_adapter(model, out / skill.NAME)
    write_eval(out / skill.NAME / "eval.jsonl", test)
    training = run._asdict() | {
        "rank": RANK,
        "target_modules": TARGET_MODULES,
        "seconds": round(time.monotonic() - started),
        "final_loss": round(fmean(recent), 4),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "command": run.command(skill.NAME),
    }
    write_json(out / skill.NAME / "card.json", card(skill, train, test, training))


def main(
    skills: Annotated[
        list[str] | None, typer.Argument(help="Skills to train; all if none.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder the adapters are written to.")] = ADAPTERS,
    cache: Annotated[Path | None, typer.Option(help="Folder that holds prepared models.")] = None,
    examples: Annotated[int, typer.Option(help="Training examples for each skill.")] = 2000,
    epochs: Annotated[int, typer.Option(help="Passes over the training examples.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Examples in one optimizer step.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the data, the weights and the order.")] = 0,
) -> None:
    """Train LoRA adapters for the named skills."""
    if unknown := set(skills or ()) - set(SKILLS):
        raise typer.BadParameter(f"unknown skills: {', '.join(sorted(unknown))}")
    base_model = prepare_base_model(cache or default_cache_dir())
    run = Run(examples, epochs, batch_size, seed)
    columns = "{task.description:12}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(
        *columns, TextColumn("{task.fields[loss]}"), console=Console(stderr=True)
    ) as progress:
        for name in skills or SKILLS:
            train_skill(SKILLS[name], base_model, out, run, progress)


if __name__ == "__main__":
    typer.run(main)
