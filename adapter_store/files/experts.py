"""Adapters on experts: what of them the engine takes is all of a layer, in one form."""

from collections import defaultdict
from collections.abc import Iterable

from adapter_store.files.blobs import WEIGHTS
from adapter_store.files.layers import AdaptedLayer
from cluster.adapters import BaseModelFacts
from cluster.errors import AdapterRefused


def half_of_experts(path: str) -> AdapterRefused:
    """vLLM has one switch for the two stacked parameters of a layer."""
    return AdapterRefused(
        f"{WEIGHTS}: of the experts in {path}, gate_up_proj or down_proj alone is adapted; the "
        "engine applies both or none. Train with both",
        param="source",
    )


def check_experts(layers: Iterable[AdaptedLayer], base: BaseModelFacts) -> None:
    """Refuse what vLLM's packing of experts does not take: layers in part, and both forms in one
    file (`LoRALayerWeights.pack_moe`, `_stack_moe_lora_weights`).

    Raises:
        AdapterRefused: names the layer and the remedy.
    """
    by_module = {layer.module: layer for layer in layers}
    forms = set()
    for path, experts in base.experts.items():
        stacked = [m for m in (path, f"{path}.base_layer") if m in by_module]
        if len(stacked) == 1:
            raise half_of_experts(path)
        ranks: dict[str, set[int]] = defaultdict(set)
        found = 0
        for number in range(experts.count if experts.each else 0):
            for part in experts.parts:
                if layer := by_module.get(f"{experts.each}.{number}.{part}"):
                    ranks[part].add(layer.rank)
                    found += 1
        if found and found < experts.count * len(experts.parts):
            raise AdapterRefused(
                f"{WEIGHTS}: of the experts in {path}, {found} of "
                f"{experts.count * len(experts.parts)} matrices are adapted; the engine takes all "
                "or none. Train all of them",
                param="source",
            )
        if any(len(of_part) > 1 for of_part in ranks.values()):
            raise AdapterRefused(
                f"{WEIGHTS}: the experts in {path} have adapters of several ranks; the engine "
                "takes one for each of their matrices",
                param="source",
            )
        forms |= {"stacked"} if stacked else set()
        forms |= {"single"} if found else set()
    if len(forms) > 1:
        raise AdapterRefused(
            f"{WEIGHTS}: it has experts both stacked and one by one; save it anew with peft",
            param="source",
        )
