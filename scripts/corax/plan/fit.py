"""Whether training fits the device, what the plan decides so that it does, and what would fit if it does not."""

from collections.abc import Iterator
from dataclasses import replace

from corax.errors import CoraxError
from corax.plan import fast, general, states
from corax.plan.devices import GB, GPUS
from corax.plan.memory import Component, Training, total
from corax.settings import tuning as tuning_settings


def estimate(training: Training) -> list[Component]:
    """The memory of one device (one rank) by component, at the worst moment of a step."""
    if fast.unsupported(training):
        fixed, moving = states.fixed(training), general.moving(training)
    else:
        fixed, moving = states.fixed(training, fast.embedding_on_host(training)), fast.moving(training)
    return fixed + [each for each in moving if each.bytes]


def decide(training: Training) -> Training:
    """The training with `train.layers_kept` and `train.dequantised_base` as given or, where null, as the plan has it.

    First as many layers keep their activations as fit, since that saves more time a byte; then, if all do, the base's
    16-bit values stay too where they fit. Without the fast layers neither applies.
    """
    if fast.unsupported(training):
        return training
    found = training
    if found.train.dequantised_base is None:
        found = _with(found, dequantised_base=False)
    if found.train.layers_kept is None:
        most = 0 if found.train.gradient_checkpointing else found.model.blocks
        kept = next((kept for kept in range(most, 0, -1) if fits(_with(found, layers_kept=kept))), 0)
        found = _with(found, layers_kept=kept)
    everything = _with(found, dequantised_base=True)
    if training.train.dequantised_base is None and fast.layers_kept(found) == found.model.blocks and fits(everything):
        return everything
    return found


def fits(training: Training) -> bool:
    """Whether the estimate is no more than the device has."""
    return total(estimate(training)) <= training.device.memory


def check(training: Training) -> None:
    """Raises CoraxError, with what would fit, if the estimate is more than the device has."""
    needed, available = total(estimate(training)), training.device.memory
    if needed <= available:
        return
    options = "; ".join(_what_fits(training)) or "nothing tried does: take a smaller model"
    raise CoraxError(
        f"plan.device: {training.device.name} has {available / GB:.1f} GB for each of {training.ranks} ranks, training "
        f"needs {needed / GB:.1f} GB for packs of {training.tokens:,} tokens; what would fit: {options}"
    )


def _what_fits(training: Training) -> Iterator[str]:
    """Changes of a few settings that go together and with which the estimate fits, each with its need."""
    least = _with(training, gradient_checkpointing=True)
    how = "train.gradient_checkpointing=true"
    if not fast.unsupported(training):
        least, how = _with(training, layers_kept=0, dequantised_base=False), "train.layers_kept=0"
        how += " with train.dequantised_base=false" if training.train.dequantised_base else ""
    lengths = _halves(training.tokens, training.longest_sample)
    ranks = _halves(training.lora.r, 1) if training.tuning.method == "lora" else []
    fewer = range(fast.layers_kept(training) - 1, 0, -1) if not fast.unsupported(training) else ()
    families = [
        {f"train.layers_kept={kept}": _with(training, layers_kept=kept) for kept in fewer} | {how: least},
        {f"plan.max_length={length}": _shorter(training, length) for length in lengths},
        {f"lora.r={r}": replace(training, lora=training.lora.model_copy(update={"r": r})) for r in ranks},
        {f"{how} with plan.max_length={length}": _shorter(least, length) for length in lengths},
        _fewer_bits(training),
        _divided(training),
        _lora(least, how) if _is_full(training) else {},
        {f"plan.device={name}": replace(training, device=device) for name, device in GPUS.items()},
    ]
    for family in families:
        for change, changed in family.items():
            needed = total(estimate(decide(changed)))
            if needed <= changed.device.memory and _is_allowed(changed):
                yield f"{change} ({needed / GB:.1f} GB)"
                break


def _is_allowed(training: Training) -> bool:
    """Whether these settings go together. About packing, which 8 bits may exclude: see `_fewer_bits`."""
    conflict = tuning_settings.conflict(training.tuning, training.lora, training.train, packing=False)
    has_encoder = bool(training.model.config.get("is_encoder_decoder"))
    return not (conflict or tuning_settings.undividable(training.train, training.ranks, has_encoder))


def _fewer_bits(training: Training) -> dict[str, Training]:
    """A smaller base; 8 bits without what packs of several samples exclude."""
    eight = "train.bits=8 with train.llm_int8_threshold=0"
    changes = {eight: _with(training, bits=8, llm_int8_threshold=0.0), "train.bits=4": _with(training, bits=4)}
    return {change: changed for change, changed in changes.items() if changed.train.bits < training.train.bits}


def _is_full(training: Training) -> bool:
    return training.tuning.method == "full"


def _divided(training: Training) -> dict[str, Training]:
    """All weights divided over the ranks, alone and with checkpointing."""
    if not _is_full(training) or training.ranks == 1 or training.sharded:
        return {}
    return {
        "train.fsdp=true": _with(training, fsdp=True),
        "train.fsdp=true with train.gradient_checkpointing=true": _with(
            training, fsdp=True, gradient_checkpointing=True
        ),
    }


def _lora(least: Training, how: str) -> dict[str, Training]:
    """The same with LoRA on the frozen base in 4 bits."""
    change = f"tuning.method=lora with {how}"
    change += " with train.bits=4" if least.train.bits != 4 else ""
    change += " with train.fsdp=false" if least.train.fsdp else ""
    tuning = least.tuning.model_copy(update={"method": "lora"})
    return {change: replace(_with(least, bits=4, fsdp=False), tuning=tuning)}


def _with(training: Training, **changes: object) -> Training:
    return replace(training, train=training.train.model_copy(update=changes))


def _halves(value: int, least: int) -> list[int]:
    """value / 2, value / 4, … down to `least`."""
    result = []
    while value // 2 >= least:
        value //= 2
        result.append(value)
    return result


def _shorter(training: Training, length: int) -> Training:
    """Packs of `length` tokens; a short one may have as many samples, and as many targets, as the longest of now."""
    return replace(training, tokens=length, targets=min(training.targets, length))
