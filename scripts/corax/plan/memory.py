"""How much memory training needs on each device: a sum of parts that can be checked by hand.

The sum is that of the worst moment of a step. What is there all the time is counted in states.py; what comes and
goes, for the fast layers in fast.py, for plain transformers and peft in general.py. A micro-batch is one pack.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from corax.plan.devices import Device
from corax.plan.model import Model
from corax.settings.lora import LoraSettings
from corax.settings.train import TrainSettings
from corax.settings.tuning import TuningSettings

FLOAT32 = 4


@dataclass(frozen=True)
class Component:
    """One part of the memory and the formula behind its figure."""

    component: str
    bytes: int
    how: str


@dataclass(frozen=True)
class Training:
    """What memory and time depend on; `tokens` and `targets` (with loss) are the most in one pack."""

    model: Model
    device: Device
    ranks: int
    lora: LoraSettings
    train: TrainSettings
    tuning: TuningSettings
    tokens: int
    targets: int
    longest_sample: int
    new_tokens: int = 0
    """Tokens of the model whose embeddings are trained."""
    packs_per_rank: int = 1
    """Packs of one step on one device: from the second on, gradients are there while activations are."""
    samples: int = 1
    """The most in one pack, which virtual tokens stand before."""

    @property
    def sharded(self) -> bool:
        """Weights, gradients and moments divided over the ranks (FSDP, ZeRO-3), each block gathered when needed."""
        return self.train.fsdp


RUNTIME = "runtime"
"""The component that PyTorch's allocator does not see."""


def part(component: str, size: float, how: str) -> Component:
    """A component of so many bytes, rounded."""
    return Component(component, round(size), how)


def total(parts: Iterable[Component]) -> int:
    """The sum of all components in bytes."""
    return sum(each.bytes for each in parts)


def allocated(parts: Iterable[Component]) -> int:
    """What PyTorch's allocator counts at its peak (`torch.cuda.max_memory_allocated`), in bytes."""
    return total(each for each in parts if each.component != RUNTIME)
