"""Measures the adapters of the demo world on held-out prompts, by exact match.

Without `--auto`, transformers and peft answer with the base model alone and with each adapter.
With `--auto URL`, a running Roundhouse endpoint answers: once told the adapter, once choosing it.
Both passes update `results.json` and the table in `README.md`, and leave the other's columns alone.
"""

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from examples.base_model import default_cache_dir, prepare_base_model
from examples.skills import SKILLS
from examples.skills.common import Example

HERE = Path(__file__).parent
ADAPTERS = HERE / "adapters"
RESULTS = HERE / "results.json"
README = HERE / "README.md"
TABLE_START, TABLE_END = "<!-- table:start -->", "<!-- table:end -->"
ADAPTER_HEADER = "x-roundhouse-adapter"
AUTO = "auto"
MAX_NEW_TOKENS = 40
BATCH_SIZE = 120
CONCURRENT_REQUESTS = 8
TIMEOUT_S = 120

Scores = dict[str, float]


def held_out(skill: str) -> list[Example]:
    """The test examples stored beside the adapter."""
    lines = (ADAPTERS / skill / "eval.jsonl").read_text(encoding="utf-8").splitlines()
    return [Example(**json.loads(line)) for line in lines]


def exact_match(answers: Sequence[str], examples: Sequence[Example]) -> float:
    """Share of answers that equal the expected ones, white space at the ends aside."""
    hits = sum(a.strip() == e.answer for a, e in zip(answers, examples, strict=True))
    return round(hits / len(examples), 4)


def measure_locally(skills: Sequence[str], base_model: Path) -> Iterator[tuple[str, Scores]]:
    """Scores of the base model and of each skill's own adapter, with transformers and peft."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_model, padding_side="left")
    base = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.bfloat16)
    for skill in skills:
        examples = held_out(skill)
        model = PeftModel.from_pretrained(base, ADAPTERS / skill).eval()
        own = exact_match(generate(model, tokenizer, examples), examples)
        base = model.unload()
        yield (
            skill,
            {"base": exact_match(generate(base, tokenizer, examples), examples), "own": own},
        )


def generate(model, tokenizer, examples: Sequence[Example]) -> list[str]:
    """Greedy answers to all prompts."""
    answers = []
    for start in range(0, len(examples), BATCH_SIZE):
        batch = examples[start : start + BATCH_SIZE]
        inputs = tokenizer.apply_chat_template(
            [[{"role": "user", "content": example.prompt}] for example in batch],
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
        )
        output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        new_tokens = output[:, inputs["input_ids"].shape[1] :]
        answers += tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
    return answers


def measure_over_http(skills: Sequence[str], url: str) -> Iterator[tuple[str, Scores]]:
    """Scores of a running endpoint, and the share of prompts routed to the right adapter."""
    for skill in skills:
        examples = held_out(skill)
        own = asyncio.run(ask_all(url, skill, examples))
        auto = asyncio.run(ask_all(url, AUTO, examples))
        yield (
            skill,
            {
                "own_http": exact_match([answer for answer, _ in own], examples),
                "auto": exact_match([answer for answer, _ in auto], examples),
                "routed": round(sum(name == skill for _, name in auto) / len(auto), 4),
            },
        )


async def ask_all(
    url: str, model: str, examples: Sequence[Example]
) -> list[tuple[str, str | None]]:
    """Answer and adapter of every prompt, a few requests at a time."""
    import httpx

    limits = httpx.Limits(max_connections=CONCURRENT_REQUESTS)
    timeout = httpx.Timeout(TIMEOUT_S, pool=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=timeout) as client:
        return await asyncio.gather(*(ask(client, model, e.prompt) for e in examples))


async def ask(client, model: str, prompt: str) -> tuple[str, str | None]:
    """One chat completion, and the adapter that the endpoint says it used."""
    response = await client.post(
        "/v1/chat/completions",
        json={
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": MAX_NEW_TOKENS,
        },
    )
    response.raise_for_status()
    content = response.json()["choices"][0]["message"]["content"]
    return content, response.headers.get(ADAPTER_HEADER)


def read_results() -> dict[str, Scores]:
    """What earlier runs measured."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}


def write_results(results: dict[str, Scores]) -> None:
    """Stores the scores by skill, and renews the table of the README."""
    ordered = {name: results[name] for name in SKILLS if name in results}
    RESULTS.write_text(json.dumps(ordered, indent=2) + "\n", encoding="utf-8")
    readme = README.read_text(encoding="utf-8")
    before, rest = readme.split(TABLE_START)
    after = rest.split(TABLE_END)[1]
    README.write_text(
        f"{before}{TABLE_START}\n{table(ordered)}{TABLE_END}{after}", encoding="utf-8"
    )


def table(results: dict[str, Scores]) -> str:
    """The scores as Markdown, one row for each skill."""
    rows = [
        "| skill | what it does | example | base | own | auto |",
        "|---|---|---|---|---|---|",
        *(row(name, scores) for name, scores in results.items()),
        mean_row(list(results.values())),
    ]
    return "".join(f"{line}\n" for line in rows)


def row(name: str, scores: Scores) -> str:
    """One row; what has not been measured yet is shown as a dash."""
    example = held_out(name)[-1]
    columns = (f"{scores[c]:.2f}" if c in scores else "-" for c in ("base", "own", "auto"))
    shown = f"{example.prompt} → `{example.answer}`".replace("|", "\\|")
    return f"| {name} | {SKILLS[name].DESCRIPTION} | {shown} | {' | '.join(columns)} |"


def mean_row(results: Sequence[Scores]) -> str:
    """The mean of each column, with the share of prompts that `auto` routed right."""

    def mean(column: str) -> str:
        measured = [scores[column] for scores in results if column in scores]
        return f"{sum(measured) / len(measured):.3f}" if measured else "-"

    routed = f"{mean('routed')} of the prompts went to their own adapter"
    return f"| **mean** | {routed} | | {mean('base')} | {mean('own')} | {mean('auto')} |"


def main(
    skills: Annotated[
        list[str] | None, typer.Argument(help="Skills to measure, all if none.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder that holds prepared models.")] = None,
    auto: Annotated[str | None, typer.Option(help="Address of a running endpoint.")] = None,
) -> None:
    """Measure exact match on held-out prompts."""
    names = skills or list(SKILLS)
    if auto:
        measured = measure_over_http(names, auto)
    else:
        measured = measure_locally(names, prepare_base_model(cache or default_cache_dir()))
    results = read_results()
    with Progress(console=Console(stderr=True)) as progress:
        for name, scores in progress.track(measured, total=len(names), description="Measuring"):
            results[name] = results.get(name, {}) | scores
            write_results(results)
            progress.console.print(name, scores)


if __name__ == "__main__":
    typer.run(main)
