"""What is in memory during the whole training: the base, what is trained, and the optimizer's moments."""

from collections.abc import Iterator
from math import ceil

from corax.errors import CoraxError
from corax.plan import architectures
from corax.plan.memory import FLOAT32, RUNTIME, Component, Training, part
from corax.plan.model import NOT_QUANTISED, Model, lora_parameters
from corax.settings.lora import LoraSettings
from corax.settings.tuning import TuningSettings

BLOCK = 64
"""Weights that share one quantisation constant (bitsandbytes' default)."""
CONSTANTS_BLOCK = 256
"""Constants that share a constant of their own, where they are quantised too; so do moments of 8 bits."""
MOMENTS = {"adamw_torch": 2 * FLOAT32, "adamw_8bit": 2 * (1 + FLOAT32 / CONSTANTS_BLOCK)}
"""Bytes a trained weight. Paged moments are not the allocator's: the driver moves them to main memory and back."""
IA3_TARGETS = {
    "attention": ("k_proj", "v_proj", "qkv_proj", "c_attn", "k", "v"),
    "mlp": ("down_proj", "wo", "mlp.c_proj"),
}
"""Layers whose output (attention) or input (MLP) IA3 scales (arXiv 2205.05638)."""


def fixed(training: Training, embedding_on_host: bool = False) -> list[Component]:
    """Base, trained weights, moments and the process itself, by component.

    With the gradients a weight of full fine-tuning takes 16 bytes: 4 for itself, 4 for its gradient and 8 for AdamW's
    moments. The usual convention (ZeRO, arXiv 1910.02054) comes to the same: 2, 2, 8, and 4 for a master copy.
    """
    return [
        *base(training, embedding_on_host),
        *_trained(training),
        part(RUNTIME, training.device.runtime, "libraries and context of one process"),
    ]


def base(training: Training, embedding_on_host: bool = False) -> list[Component]:
    """The weights that are loaded to the device, by kind; if all are trained, in float32."""
    model, number, is_full = training.model, training.device.compute_bytes, training.tuning.method == "full"
    if is_full:
        number = FLOAT32
    bits = 8 * number if is_full else weight_bits(training)
    small = model.linear_parameters if training.train.bits == 16 or is_full else model.quantised_parameters
    kinds = {
        "linear layers never quantised": model.linear_parameters - small,
        "embedding": 0 if embedding_on_host else model.embeddings,
        "output head": model.head,
        "norms and biases": model.parameters - model.linear_parameters - model.embeddings - model.head,
    }
    what = "all weights" if is_full else "base"
    linears = part(f"{what}: linear layers", small * bits / 8, f"{small:,} × {bits:.4g} bits")
    others = [part(f"{what}: {name}", count * number, f"{count:,} × {number} bytes") for name, count in kinds.items()]
    return [_share(each, training) for each in (linears, *others) if each.bytes]


def weight_bits(training: Training) -> float:
    """Bits of a weight in the base's linear layers, the quantisation's constants included."""
    train, model = training.train, training.model
    if train.bits == 4:
        return quantised_bits(train.bnb_4bit_use_double_quant)
    if train.bits == 8:  # a float32 for each row (LLM.int8, arXiv 2208.07339)
        return 8 + 32 * sum(out for out, _ in model.linears.values()) / model.linear_parameters
    return 8 * training.device.compute_bytes


def quantised_bits(double_quant: bool) -> float:
    """Bits a weight of bitsandbytes' 4-bit types: the weight and its share of the constants (arXiv 2305.14314).

    A constant is a float32 for each 64 weights; with `double_quant` 8 bits, and a float32 for each 256 constants.
    """
    constant = 8 + 32 / CONSTANTS_BLOCK if double_quant else 32
    return 4 + constant / BLOCK


def trained_parameters(model: Model, lora: LoraSettings, tuning: TuningSettings, new_tokens: int = 0) -> int:
    """Numbers that are trained; raises CoraxError for a LoRA target or a module to save that is none."""
    tokens = tuning.num_virtual_tokens
    if tuning.method == "full":
        return model.parameters
    if tuning.method == "ia3":
        return sum(_ia3(name, shape) for name, shape in model.linears.items())
    if tuning.method == "prompt_tuning":  # of an encoder and a decoder each
        return tokens * model.hidden * (2 if model.config.get("is_encoder_decoder") else 1)
    if tuning.method == "prefix_tuning":
        return tokens * architectures.size(model.config, "num_hidden_layers") * 2 * model.keys
    if tuning.method == "adaption_prompt":
        return (tuning.adapter_layers or model.blocks) * (tuning.adapter_len * model.hidden + 1)
    lengths = sum(out for out, _ in model.targets(lora.target_modules).values()) if lora.use_dora else 0
    saved = sum(_saved(model, name) for name in lora.modules_to_save)
    rows = new_tokens * model.hidden * (2 if model.head else 1)
    return lora_parameters(model, lora.r, lora.target_modules) + lengths + saved + rows


def trained_weights(training: Training) -> int:
    """`trained_parameters` of a training."""
    return trained_parameters(training.model, training.lora, training.tuning, training.new_tokens)


def gradients(training: Training) -> Component:
    """The gradients of all that is trained, in float32."""
    count = trained_weights(training)
    return _share(part(f"{_what(training)}: gradients", count * FLOAT32, f"{count:,} × 4 bytes"), training)


def exchange(training: Training) -> list[Component]:
    """A copy of all gradients, in which they are summed over the ranks."""
    if training.ranks == 1 or training.sharded:
        return []
    whole = gradients(training)
    return [part(f"{whole.component} in exchange", whole.bytes, whole.how)]


def paged_bytes(training: Training) -> float:
    """Bytes of moments that the driver may keep in main memory."""
    optim = training.train.optim
    count = trained_weights(training)
    return count * _moments(optim) if optim.startswith("paged_") else 0


def _trained(training: Training) -> Iterator[Component]:
    count, optim = trained_weights(training), training.train.optim
    what, moments = _what(training), _moments(optim)
    if training.tuning.method != "full":
        yield _share(part(f"{what}: weights", count * FLOAT32, f"{count:,} × 4 bytes"), training)
    if optim.startswith("paged_"):
        yield part(f"{what}: AdamW moments", 0, f"{count:,} × {moments:.3g} bytes, paged: in main memory when short")
    else:
        yield _share(part(f"{what}: AdamW moments", count * moments, f"{count:,} × {moments:.3g} bytes"), training)


def _moments(optim: str) -> float:
    return MOMENTS["adamw_8bit"] if "8bit" in optim else MOMENTS["adamw_torch"]


def _what(training: Training) -> str:
    return "all weights" if training.tuning.method == "full" else "adapter"


def _share(whole: Component, training: Training) -> Component:
    """The component on one of several devices."""
    if not training.sharded:
        return whole
    return part(whole.component, ceil(whole.bytes / training.ranks), f"{whole.how} / {training.ranks} devices")


def _ia3(name: str, shape: tuple[int, int]) -> int:
    if any(name.endswith(f".{target}") for target in IA3_TARGETS["attention"]):
        return shape[0]
    return shape[1] if any(name.endswith(f".{target}") for target in IA3_TARGETS["mlp"]) else 0


def check_saved(training: Training) -> None:
    """Raise CoraxError for a module to save whose weights are quantised, as the training would once it has a GPU."""
    model, train = training.model, training.train
    quantised = {linear.rpartition(".")[2] for linear in model.linears}.difference(NOT_QUANTISED.get(model.family, ()))
    found = quantised.intersection(training.lora.modules_to_save)
    if found and train.bits < 16 and training.tuning.method == "lora":
        raise CoraxError(
            f"lora.modules_to_save: {min(found)!r} is quantised with train.bits {train.bits}, so only an adapter on it "
            f"can be trained, allowed: {', '.join(sorted(set(model.modules) - quantised))}"
        )


def _saved(model: Model, name: str) -> int:
    """Weights of the modules that are trained as a whole beside the adapter: as in peft also those that end so."""
    if name not in model.modules:
        allowed = ", ".join(sorted(model.modules))
        raise CoraxError(f"lora.modules_to_save: {name!r} names no module of the model, allowed: {allowed}")
    return sum(count for module, count in model.modules.items() if module.endswith(name))
