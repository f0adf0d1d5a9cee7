"""Merging what is more than W + scale · B·A: DoRA, IA3, whole modules and new tokens; one file of weights at a time."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from corax.errors import CoraxError
from corax.json_object import read_object
from corax.merge.lora import MERGEABLE_VARIANTS, PREFIX, read_scale
from corax.merge.weights import Bases, read_header
from corax.progress import Progress

Change = Callable[[torch.Tensor], torch.Tensor]
"""From a weight of the base, in float32, to the merged one."""


def read_changes(model: Path, adapter: Path) -> dict[str, Change]:
    """What becomes of each weight of the model folder `model` that the adapter changes, by the weight's name.

    Raises CoraxError, naming the file, if the adapter cannot be merged or belongs to no weight of this model.
    """
    config_file, file = adapter / "adapter_config.json", adapter / "adapter_model.safetensors"
    config, tied = read_object(config_file), bool(read_object(model / "config.json").get("tie_word_embeddings"))
    tensors = {name.removeprefix(PREFIX): tensor.float() for name, tensor in load_file(file).items()}
    stored = {name for each in model.glob("*.safetensors") for name in read_header(each)}
    if config.get("peft_type") == "IA3":
        changes = _scaled(tensors, stored)
    else:
        _, scale = read_scale(config_file, MERGEABLE_VARIANTS)
        _check_complete(tensors, bool(config.get("use_dora")), file)
        changes = _updated(tensors, scale, config.get("trainable_token_indices") or {})
    # A head that shares its weight with the embedding is written beside it, but need not be stored.
    found = {name: change for name, change in changes.items() if name in stored}
    unknown = [name for name in changes if name not in stored and not (tied and name == "lm_head.weight")]
    if unknown:
        raise CoraxError(f"{file}: {unknown[0]} is no weight of {model}: the adapter of another model?")
    if not found:
        raise CoraxError(f"{file}: no tensor in it")
    return found


def _check_complete(tensors: Mapping[str, torch.Tensor], use_dora: bool, file: Path) -> None:
    needed = ["lora_A.weight", "lora_B.weight", *(["lora_magnitude_vector"] if use_dora else [])]
    for module in sorted({name.rpartition(".lora_")[0] for name in tensors if ".lora_" in name}):
        for part in needed:
            if f"{module}.{part}" not in tensors:
                raise CoraxError(f"{file}: {module}.{part} is missing")


def write_changed(model: Path, changes: Mapping[str, Change], output: Path, seen: Bases) -> None:
    """Write the weights of `model`, changed in float32 and rounded once, to `output`; `seen` are other bases."""
    files = sorted(model.glob("*.safetensors"))
    with Progress(f"merge {output.name.removeprefix('.')}", total=len(files), unit="file") as progress:
        for file in files:
            with safe_open(file, framework="pt") as content:
                metadata = content.metadata()
            tensors, headers = load_file(file), read_header(file)
            for name, tensor in tensors.items():
                if name in changes or name in seen:
                    base = seen[name](headers[name])(tensor, 0) if name in seen else tensor
                    values = base.float()
                    values = changes[name](values) if name in changes else values
                    if values.shape != tensor.shape:
                        raise CoraxError(
                            f"{file}: {name} has the shape {list(tensor.shape)}, the adapter's {list(values.shape)}"
                        )
                    tensors[name] = values.to(tensor.dtype)
                    if not bool(tensors[name].isfinite().all()):
                        raise CoraxError(f"{file}: {name} is not finite once the adapter is added")
            save_file(tensors, output / file.name, metadata=metadata)
            progress.advance()


def _scaled(tensors: Mapping[str, torch.Tensor], stored: set[str]) -> dict[str, Change]:
    """IA3 (arXiv 2205.05638): each output (out × 1), or each input (1 × in) of a feed-forward layer, has a factor."""
    changes: dict[str, Change] = {}
    for name, factors in tensors.items():
        module = name.removesuffix(".ia3_l")
        changes[f"{module}.weight"] = lambda weight, factors=factors: weight * factors  # type: ignore[misc]
        if f"{module}.bias" in stored and factors.shape[1] == 1:
            changes[f"{module}.bias"] = lambda bias, factors=factors: bias * factors[:, 0]  # type: ignore[misc]
    return changes


def _updated(tensors: Mapping[str, torch.Tensor], scale: float, tokens: Mapping[str, list[int]]) -> dict[str, Change]:
    changes: dict[str, Change] = {}
    for name, tensor in tensors.items():
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            b, magnitude = tensors[f"{module}.lora_B.weight"], tensors.get(f"{module}.lora_magnitude_vector")
            changes[f"{module}.weight"] = _low_rank(tensor, b, scale, magnitude)
        elif name.endswith(".token_adapter.trainable_tokens_delta"):
            module = name.removesuffix(".token_adapter.trainable_tokens_delta")
            changes[f"{module}.weight"] = _rows(tensor, tokens[module.rpartition(".")[2]])
        elif ".lora_" not in name:
            changes[name] = lambda _, trained=tensor: trained  # type: ignore[misc]
    return changes


def _low_rank(a: torch.Tensor, b: torch.Tensor, scale: float, magnitude: torch.Tensor | None) -> Change:
    """W + scale · B·A, and with DoRA (arXiv 2402.09353) each row of it at the trained length `magnitude`."""

    def change(weight: torch.Tensor) -> torch.Tensor:
        total = torch.addmm(weight, b, a, alpha=scale)
        return total if magnitude is None else total * (magnitude / total.norm(dim=1))[:, None]

    return change


def _rows(rows: torch.Tensor, tokens: list[int]) -> Change:
    def change(weight: torch.Tensor) -> torch.Tensor:
        return weight.index_copy(0, torch.tensor(tokens), rows)

    return change
