"""Two training steps on the longest packs before the real ones: does the plan hold on this very device?

They leave nothing behind: weights are put back bit for bit, the optimizer is one of their own, and random numbers go on
as if nothing had been drawn.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from corax.errors import CoraxError
from corax.settings.train import TrainSettings
from corax.train.engine import Engine
from corax.train.optimization import make_optimizer, trained
from corax.train.packs import Packs
from corax.train.tensors import local

log = logging.getLogger("corax")

GB = 10**9


@dataclass(frozen=True)
class Probe:
    """What the two steps took beside what was planned; the report shows it."""

    planned_peak_bytes: int
    probe_peak_bytes: int | None
    """Of PyTorch's allocator; None on a CPU."""
    planned_pack_seconds: float
    """Of a pack with the most tokens and targets."""
    probe_pack_seconds: float
    """Of the second step; the first compiles."""

    def content(self) -> dict[str, Any]:
        """For a manifest."""
        return asdict(self)


def probe(engine: Engine, packs: Packs, train: TrainSettings, plan: dict[str, Any]) -> Probe:
    """Train on the pack with the most tokens, then on that with the most targets, and say how it went.

    Raises CoraxError with what to change if the device's memory does not suffice.
    """
    device = engine.device
    seconds = 0.0
    try:
        with _unchanged(engine.model):
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            optimizer = make_optimizer(trained(engine.model), train)
            for pack in (packs.token_counts.argmax(), packs.target_tokens.argmax()):
                start = time.monotonic()
                _step(engine, packs, int(pack), optimizer, train.max_grad_norm)
                seconds = time.monotonic() - start
    except torch.OutOfMemoryError:
        raise CoraxError(_advice(device, plan)) from None
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    found = Probe(plan["memory_allocated_bytes"], peak, plan["seconds_longest_pack"], round(seconds, 4))
    log.info(_line(found))
    return found


def _step(engine: Engine, packs: Packs, pack: int, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
    """One pack, forward and backward, and the optimizer; reading the loss waits for the device."""
    batch = packs.batch(pack)
    loss = engine.loss_sum(batch, seed=0) / len(batch.targets)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_([each for group in optimizer.param_groups for each in group["params"]], max_norm)
    optimizer.step()
    optimizer.zero_grad()
    loss.item()


@contextmanager
def _unchanged(model: Any) -> Iterator[None]:
    """Afterwards weights, random numbers and mode are what they were, and there are no gradients."""
    parameters = trained(model).values()
    saved = [local(parameter.detach()).to("cpu", copy=True) for parameter in parameters]
    training = model.training
    devices = [parameter.device for parameter in parameters if parameter.is_cuda][:1]
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(parameters, saved, strict=True):
                    parameter.grad = None
                    local(parameter).copy_(value)
            model.train(training)
            if devices:
                torch.cuda.empty_cache()


def _line(found: Probe) -> str:
    text = f"probe: {found.probe_pack_seconds:.3g} s for the longest pack, planned {found.planned_pack_seconds:.3g} s"
    if found.probe_peak_bytes is None:
        return text
    share = found.probe_peak_bytes / found.planned_peak_bytes - 1
    return (
        f"{text}; peak memory {found.probe_peak_bytes / GB:.2f} GB, planned {found.planned_peak_bytes / GB:.2f} GB "
        f"({share:+.1%})"
    )


def _advice(device: torch.device, plan: dict[str, Any]) -> str:
    """One line: what ran out, against what the plan had, and what needs less."""
    card = torch.cuda.get_device_properties(device).total_memory / GB if device.type == "cuda" else 0.0
    kept, layer = plan["layers_kept"], plan["memory_layer_kept_bytes"]
    if kept:
        less = f"train.layers_kept below {kept} ({layer / GB:.2f} GB a layer)"
    elif plan["dequantised_base"]:
        less = "train.dequantised_base=false"
    else:
        less = "train.gradient_checkpointing=true" if plan["engine"] == "general" else "a smaller lora.r"
    return (
        f"plan.device: {plan['device']}: out of memory in two trial steps on the longest packs; planned "
        f"{plan['memory_bytes'] / GB:.1f} GB, this card has {card:.1f} GB and others may use it; take {less}, "
        f"plan.max_length below {plan['max_length']}, or a larger plan.device"
    )
