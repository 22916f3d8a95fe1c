"""Another version of an adapter: `python -m examples.vary SOURCE TARGET --noise 0.3`.

Adds noise to its weights, so that a rollout can be tried without training: with a little noise the
answers stay as they are, with much they get worse.
"""

import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import load_file, save_file

WEIGHTS = "adapter_model.safetensors"


def vary(source: Path, target: Path, *, noise: float, seed: int) -> None:
    """Copy an adapter's folder; each weight gets noise of `noise` times its tensor's deviation."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in load_file(source / WEIGHTS).items():
        wide = weight.float()
        added = torch.randn(wide.shape, generator=random) * wide.std() * noise
        tensors[name] = (wide + added).to(weight.dtype)
    save_file(tensors, target / WEIGHTS)


def main(
    source: Annotated[Path, typer.Argument(help="Folder of an adapter.")],
    target: Annotated[Path, typer.Argument(help="Folder to write.")],
    noise: Annotated[float, typer.Option(min=0, help="Share of the weights' deviation.")] = 0.3,
    seed: Annotated[int, typer.Option(help="Another seed makes another version.")] = 0,
) -> None:
    vary(source, target, noise=noise, seed=seed)


if __name__ == "__main__":
    typer.run(main)
