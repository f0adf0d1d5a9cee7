"""What the plan needs to know of a model: sizes from its configuration, tensor shapes from its weight files."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from corax import safetensors_header
from corax.errors import CoraxError
from corax.json_object import read_object
from corax.plan import architectures
from corax.plan.architectures import Shape

BLOCK_WEIGHT = re.compile(r"(?P<linear>.*\.\d+\..+)\.weight")
"""A weight inside a numbered block of the model."""
NO_LINEAR = re.compile("norm|embed|lm_head|relative_attention_bias")
"""In names of weights with two dimensions that no linear layer has."""
EMBEDDING = re.compile(r"(embed_tokens|shared|wte|wpe)\.weight$")
NOT_QUANTISED = {"t5": ("wo",)}
"""Linear layers that transformers leaves as they are, by architecture."""


@dataclass(frozen=True)
class Model:
    """Sizes of a dense transformer: `linears` are (out, in) of the linear layers in the blocks by name."""

    parameters: int
    linears: dict[str, tuple[int, int]]
    blocks: int
    """Of encoder and decoder together."""
    hidden: int
    intermediate: int
    heads: int
    attention: int
    """Heads times head size."""
    keys: int
    """Heads of keys (or of values) times head size."""
    vocabulary: int
    embeddings: int
    """Weights of the embeddings of tokens and positions."""
    head: int
    """Weights of the output head; 0 if it is the embedding."""
    modules: dict[str, int]
    """Weights of all modules of one name, such as `norm` or `embed_tokens`."""
    config: Mapping[str, Any]
    """config.json."""

    @property
    def family(self) -> str:
        """transformers' model type; empty if the configuration names none."""
        return str(self.config.get("model_type", ""))

    @property
    def quantised_parameters(self) -> int:
        """Weights that an 8- or 4-bit base keeps in so many bits."""
        left = NOT_QUANTISED.get(self.family, ())
        kept = (shape for name, shape in self.linears.items() if name.rpartition(".")[2] not in left)
        return sum(out * width for out, width in kept)

    @property
    def linear_parameters(self) -> int:
        """Weights in the linear layers of the blocks."""
        return sum(out * width for out, width in self.linears.values())

    def targets(self, target_modules: list[str]) -> dict[str, tuple[int, int]]:
        """The linear layers that get an adapter; raises CoraxError for a name that fits none.

        As in peft a name fits a layer that it equals or whose last parts it is; `all-linear` fits all.
        """
        if target_modules == ["all-linear"]:
            return self.linears
        for target in target_modules:
            if not any(_fits(linear, target) for linear in self.linears):
                allowed = sorted({linear.rpartition(".")[2] for linear in self.linears})
                raise CoraxError(
                    f"lora.target_modules: {target!r} names no linear layer of the model's blocks, "
                    f"allowed: all-linear or {', '.join(allowed)}"
                )
        return {
            linear: shape
            for linear, shape in self.linears.items()
            if any(_fits(linear, target) for target in target_modules)
        }


def lora_parameters(model: Model, r: int, target_modules: list[str]) -> int:
    """Weights of the adapter: r (in + out) for each layer (LoRA, arXiv 2106.09685)."""
    return sum(r * (out + width) for out, width in model.targets(target_modules).values())


def read(folder: Path) -> Model:
    """The model in `folder`; raises CoraxError if configuration or weights are missing or damaged."""
    return describe(read_object(folder / "config.json"), tensor_shapes(folder), str(folder / "config.json"))


def from_config(path: Path) -> Model:
    """The model that a config.json describes, without weights; raises CoraxError for an unknown architecture."""
    config = read_object(path)
    return describe(config, architectures.shapes(config, str(path)), str(path))


def describe(config: Mapping[str, Any], shapes: Mapping[str, Shape], origin: str = "config.json") -> Model:
    """The model with this configuration and these tensors; a tied output head counts once."""
    head_size = architectures.head_size(config, origin)
    heads = architectures.size(config, "num_attention_heads", origin)
    blocks = architectures.size(config, "num_hidden_layers", origin)
    if config.get("is_encoder_decoder"):
        blocks += config.get("num_decoder_layers") or blocks
    kept = {name: shape for name, shape in shapes.items() if not (architectures.is_tied(config) and _is_copy(name))}
    return Model(
        parameters=sum(prod(shape) for shape in kept.values()),
        linears=_linears(kept, origin),
        blocks=blocks,
        hidden=architectures.size(config, "hidden_size", origin),
        intermediate=architectures.intermediate(config, origin),
        heads=heads,
        attention=heads * head_size,
        keys=architectures.key_value_heads(config, origin) * head_size,
        vocabulary=architectures.size(config, "vocab_size", origin),
        embeddings=sum(prod(shape) for name, shape in kept.items() if EMBEDDING.search(name)),
        head=sum(prod(shape) for name, shape in kept.items() if name == "lm_head.weight"),
        modules=_modules(kept),
        config=dict(config),
    )


def tensor_shapes(folder: Path) -> dict[str, Shape]:
    """Name and shape of every tensor that transformers would load from `folder`, from the files' headers alone."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weights = read_object(index).get("weight_map")
        if not isinstance(weights, dict):
            raise CoraxError(f"{index}: weight_map is missing")
        files = sorted({folder / str(name) for name in weights.values()})
    else:
        files = [folder / "model.safetensors"]
    for file in files:
        if not file.is_file():
            raise CoraxError(f"{file}: missing, so this is no complete model folder")
    headers = map(safetensors_header.read, files)
    return {name: tensor.shape for header in headers for name, tensor in header.tensors.items()}


def _modules(shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Weights by the last name of their module."""
    found: dict[str, int] = {}
    for name, shape in shapes.items():
        module = name.split(".")[-2] if "." in name else name
        found[module] = found.get(module, 0) + prod(shape)
    return found


def _is_copy(name: str) -> bool:
    """Whether a model with tied weights keeps this tensor as another one too."""
    return name in ("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def _linears(shapes: Mapping[str, Shape], origin: str) -> dict[str, tuple[int, int]]:
    """The 2-dimensional weights of the blocks that are no norm, embedding or output head."""
    found: dict[str, tuple[int, int]] = {}
    for name, shape in sorted(shapes.items()):
        match = BLOCK_WEIGHT.fullmatch(name)
        if match and len(shape) == 2 and not NO_LINEAR.search(name):
            found[match["linear"]] = (shape[0], shape[1])
    if not found:
        raise CoraxError(f"{origin}: the weights beside it have no linear layers in numbered blocks")
    return found


def _fits(linear: str, target: str) -> bool:
    return linear == target or linear.endswith(f".{target}")
