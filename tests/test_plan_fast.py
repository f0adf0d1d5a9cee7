"""The plan's count of what the fast layers keep and need, against the layers themselves, tensor by tensor."""

from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import engine_models
import numpy as np
import pytest
import torch
from live_memory import LiveMemory
from plan_trainings import sizes, training

from corax.plan import architectures, fast, memory, model
from corax.plan.devices import GB, Device
from corax.settings.lora import LoraSettings
from corax.train.attention import Documents
from corax.train.fast import elementwise, head
from corax.train.fast import layer as layers
from corax.train.fast.engine import FastEngine, unsupported
from corax.train.packs import Batch, flatten

CARD = Device("card", GB, 1.0, 1.0, 1.0, 4, 0)
"""Like a GPU, but computing in float32 as this CPU does."""
SIZES = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 8, "vocab_size": 1000}
R = 8
KERNELS = [
    *((head, name) for name in ("cross_entropy", "rms_norm", "rms_norm_backward")),
    *((layers, name) for name in ("copy", "rms_norm", "rms_norm_backward", "rotate", "swiglu", "swiglu_backward")),
    *((elementwise, name) for name in ("dequantise", "scales")),
]
"""On a GPU one kernel each."""
DOCUMENTS = [200, 300, 90, 434]


class _Attention(torch.autograd.Function):
    """Stands in for a GPU's attention, which no CPU has: it keeps query, key, value, output and a normaliser."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = torch.zeros_like(query)
        ctx.save_for_backward(query, key, value, output, torch.zeros(query.shape[:2]))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        return tuple(torch.zeros_like(tensor) for tensor in ctx.saved_tensors[:3])


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents, scale: float) -> torch.Tensor:
    output: torch.Tensor = _Attention.apply(q, k, v)  # type: ignore[no-untyped-call]
    return output


@pytest.fixture(scope="module")
def peft_model() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_models, "SIZES", {**engine_models.SIZES, **SIZES})
        return engine_models.quantised(Path(mkdtemp()), "llama", LoraSettings(r=R))


def _pack() -> Batch:
    random = np.random.default_rng(0)
    samples = [random.integers(1, 300, length).astype(np.uint32) for length in DOCUMENTS]
    return flatten([(ids, np.arange(len(ids) // 2, len(ids))) for ids in samples])


def _planned(peft_model: Any, kept: int, dequantised: bool, packs: int) -> memory.Training:
    config = peft_model.get_base_model().config.to_dict()
    batch = _pack()
    return training(
        model.describe(config, architectures.shapes(config)),
        CARD,
        tokens=batch.input_ids.numel(),
        targets=len(batch.targets),
        longest_sample=max(DOCUMENTS),
        r=R,
        packs=packs,
        layers_kept=kept,
        dequantised_base=dequantised,
    )


@pytest.mark.parametrize(
    ("kept", "dequantised", "packs"),
    [(0, False, 1), (0, False, 2), (1, False, 1), (2, True, 1), (3, False, 1), (3, True, 2)],
)
def test_peak_of_a_step(
    peft_model: Any, kept: int, dequantised: bool, packs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that forward and backward pass of a pack make, at the worst moment: within 3 % of the plan."""
    monkeypatch.setattr(layers, "attend", _attend)
    live = LiveMemory()
    for module, name in KERNELS:
        monkeypatch.setattr(module, name, live.kernel(getattr(module, name)))
    planned = _planned(peft_model, kept, dequantised, packs)
    engine = FastEngine(peft_model, kept, dequantised)
    batch = _pack()
    peft_model.zero_grad()
    with live:
        for _ in range(packs):
            engine.loss_sum(batch, None).backward()  # type: ignore[no-untyped-call]
    peft_model.zero_grad()
    parts = sizes(fast.moving(planned))
    made_before = parts.pop("base: its values in 16 bits", 0) + parts.pop("matrix products: workspace")
    assert made_before
    assert live.peak == pytest.approx(sum(parts.values()), rel=0.03)


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_what_a_layer_keeps(peft_model: Any, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the forward pass: the inputs of all layers, and of kept ones what the plan counts, within 1 %."""
    monkeypatch.setattr(layers, "attend", _attend)
    planned = _planned(peft_model, kept, False, 1)
    engine = FastEngine(peft_model, kept, False)
    with LiveMemory() as live:
        loss = engine.loss_sum(_pack(), None)
    found = fast.Sizes.of(planned)
    # Beside the layers: the loss's gradient, rotary angles, dropout's and the documents' numbers.
    rest = planned.targets * planned.model.hidden * 4 + 2 * planned.tokens * 16 * 4
    of_layers = (kept - 1) * found.kept + found.kept_last if kept else 0
    assert live.now == pytest.approx(3 * found.stream + of_layers + rest, rel=0.02)
    del loss


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "phi3", "gemma2"])
def test_plan_and_training_choose_the_same_engine(family: str, tmp_path: Path) -> None:
    net = engine_models.quantised(tmp_path, family, LoraSettings(r=3))
    config = net.get_base_model().config.to_dict()
    planned = training(model.describe(config, architectures.shapes(config)), CARD, longest_sample=20)
    assert (fast.unsupported(planned) is None) == (unsupported(net, longest=20) is None)


def test_dequantised_base(peft_model: Any) -> None:
    with LiveMemory() as live:
        engine = FastEngine(peft_model, 0, True)
    planned = sizes(fast.moving(_planned(peft_model, 0, True, 1)))["base: its values in 16 bits"]
    assert live.now == pytest.approx(planned, rel=0.01)
    assert engine.layers
