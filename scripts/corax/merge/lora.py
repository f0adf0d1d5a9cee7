"""A LoRA adapter in peft's format: its scale, and which base weight each pair of factors belongs to."""

import math
from collections.abc import Collection, Iterable
from pathlib import Path

from corax.errors import CoraxError
from corax.json_object import read_object
from corax.merge.weights import Factors, Stored, read_header

PLAIN_INITIALISATIONS = (True, False, "gaussian", "orthogonal")
"""Values of peft's `init_lora_weights` that leave the base as it is (PiSSA, OLoRA, … change it)."""
VARIANTS = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
)
"""Keys of peft's adapter_config.json that ask for more than W + scale · B·A."""
MERGEABLE_VARIANTS = ("modules_to_save", "trainable_token_indices", "use_dora")
"""Those of them that `corax.merge.variants` can merge."""
PREFIX = "base_model.model."
"""Of the names in an adapter's file."""


def read_adapter(model: Path, adapter: Path) -> dict[str, Factors]:
    """The factors for each weight of the model folder `model` that the adapter changes, in order of name.

    Raises CoraxError, naming the file, if the adapter is no plain LoRA or one of its tensors belongs to no
    weight of this model.
    """
    rank, scale = read_scale(adapter / "adapter_config.json")
    lora = adapter / "adapter_model.safetensors"
    config = read_object(model / "config.json")
    if "quantization_config" in config:
        raise CoraxError(f"{model / 'config.json'}: the weights are quantised, but merging needs the originals")
    stored = {
        name: tensor for file in sorted(model.glob("*.safetensors")) for name, tensor in read_header(file).items()
    }
    shapes = {name: tensor.shape for name, tensor in read_header(lora).items()}
    found: dict[str, Factors] = {}
    for module in _modules(shapes, lora):
        a, b = (f"{PREFIX}{module}.lora_{factor}.weight" for factor in "AB")
        for name in (a, b):
            if name not in shapes:
                raise CoraxError(f"{lora}: {name} is missing, though its other half is there")
        weight = f"{module}.weight"
        if weight not in stored:
            raise CoraxError(f"{lora}: {a} belongs to no weight of {model}: the adapter of another model?")
        if config.get("tie_word_embeddings") and module.endswith("lm_head"):
            raise CoraxError(f"{lora}: {a} changes the output head, which {model} shares with its embedding")
        _check_shapes(stored[weight], shapes[a], shapes[b], rank, f"{lora}: {a} and its B")
        found[weight] = Factors(a, b, scale)
    if not found:
        raise CoraxError(f"{lora}: no tensor in it")
    return found


def is_plain(adapter: Path) -> bool:
    """Whether the adapter in a folder is W + scale · B·A and nothing else."""
    config = read_object(adapter / "adapter_config.json")
    return config.get("peft_type") == "LORA" and not any(config.get(key) for key in MERGEABLE_VARIANTS)


def read_scale(config_file: Path, variants: Collection[str] = ()) -> tuple[int, float]:
    """(rank, scale) of the adapter: lora_alpha / r, or lora_alpha / √r for rsLoRA (arXiv 2312.03732).

    Raises CoraxError if it is no plain LoRA; what is named in `variants` may be beside it.
    """
    config = read_object(config_file)
    if config.get("peft_type") != "LORA":
        raise CoraxError(f"{config_file}: peft_type is {config.get('peft_type')!r}, allowed: 'LORA'")
    if config.get("bias", "none") != "none":
        raise CoraxError(f"{config_file}: bias is {config['bias']!r}, allowed: 'none'")
    if config.get("init_lora_weights", True) not in PLAIN_INITIALISATIONS:
        found, allowed = config["init_lora_weights"], ", ".join(map(repr, PLAIN_INITIALISATIONS))
        raise CoraxError(f"{config_file}: init_lora_weights is {found!r}, which changes the base, allowed: {allowed}")
    for key in VARIANTS:
        if config.get(key) and key not in variants:
            raise CoraxError(f"{config_file}: {key} is {config[key]!r}, but only plain LoRA can be merged")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or rank < 1:
        raise CoraxError(f"{config_file}: r is {rank!r} and lora_alpha is {alpha!r}, allowed: numbers, r at least 1")
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _modules(names: Iterable[str], lora: Path) -> list[str]:
    """The modules that the adapter's tensors belong to, such as `model.layers.0.mlp.up_proj`."""
    return sorted({_module(name, lora) for name in names})


def _module(name: str, lora: Path) -> str:
    for ending in (".lora_A.weight", ".lora_B.weight"):
        if name.startswith(PREFIX) and name.endswith(ending):
            return name.removeprefix(PREFIX).removesuffix(ending)
    raise CoraxError(f"{lora}: {name} is no LoRA factor of a linear layer, so it cannot be merged")


def _check_shapes(weight: Stored, a: tuple[int, ...], b: tuple[int, ...], rank: int, where: str) -> None:
    if len(weight.shape) != 2 or a != (rank, weight.shape[1]) or b != (weight.shape[0], rank):
        raise CoraxError(
            f"{where} have the shapes {list(a)} and {list(b)}, which do not fit r = {rank} and {weight.name} "
            f"{list(weight.shape)} of {weight.file}: the adapter of another model?"
        )
