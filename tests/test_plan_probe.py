"""The two trial steps before training: they change nothing, and say what does not fit."""

import json
from typing import Any

import pytest
import stages
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import Prepared

from corax.errors import CoraxError
from corax.model import load_quantised
from corax.settings.lora import LoraSettings
from corax.settings.train import TrainSettings
from corax.tokens import TokenShards
from corax.train.adapter import add_adapter
from corax.train.engine import Engine
from corax.train.fast.engine import FastEngine
from corax.train.general import GeneralEngine
from corax.train.packs import Batch, Packs
from corax.train.probe import probe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return Prepared.make(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def packs(prepared: Prepared) -> Packs:
    return Packs(prepared.plan, TokenShards([prepared.tokens], "train"), "train")


@pytest.fixture(scope="module")
def plan(prepared: Prepared) -> dict[str, Any]:
    content = json.loads((prepared.plan / "plan.json").read_text())
    assert isinstance(content, dict)
    return content


def adapted(prepared: Prepared, dropout: float = 0.0) -> Any:
    return add_adapter(load_quantised(prepared.model, torch.float32, CPU), LoraSettings(r=4, lora_dropout=dropout), 0)


def state(model: Any) -> list[torch.Tensor]:
    return [*(tensor.clone() for tensor in model.state_dict().values()), torch.get_rng_state()]


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_8bit"])
@pytest.mark.parametrize("kind", [GeneralEngine, lambda model: FastEngine(model, 1, False)])
def test_nothing_changes(prepared: Prepared, packs: Packs, plan: dict[str, Any], kind: Any, optim: Any) -> None:
    """Weights, buffers, random numbers and mode, bit for bit, and no gradient is left."""
    model = adapted(prepared, dropout=0.1)
    engine = kind(model)
    before, mode = state(model), model.training
    found = probe(engine, packs, TrainSettings(learning_rate=0.1, weight_decay=0.1, optim=optim), plan)
    assert all(torch.equal(old, new) for old, new in zip(before, state(model), strict=True))
    assert model.training == mode
    assert all(parameter.grad is None for parameter in model.parameters())
    assert found.probe_pack_seconds > 0 and found.probe_peak_bytes is None
    assert found.planned_peak_bytes == plan["memory_allocated_bytes"]


class _Watched:
    """An engine that notes the packs it is given, and may run out of memory."""

    def __init__(self, engine: Engine, fails: bool = False) -> None:
        self.engine, self.model, self.device, self.fails = engine, engine.model, engine.device, fails
        self.tokens: list[int] = []
        self.targets: list[int] = []

    def loss_sum(self, batch: Batch, seed: int | None) -> torch.Tensor:
        self.tokens.append(batch.input_ids.numel())
        self.targets.append(len(batch.targets))
        loss = self.engine.loss_sum(batch, seed)
        if self.fails:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return loss

    def target_logits(self, batch: Batch) -> torch.Tensor:
        return self.engine.target_logits(batch)


def test_the_longest_packs_are_tried(prepared: Prepared, packs: Packs, plan: dict[str, Any]) -> None:
    watched = _Watched(GeneralEngine(adapted(prepared)))
    probe(watched, packs, TrainSettings(), plan)
    assert watched.tokens[0] == packs.token_counts.max()
    assert watched.targets[1] == packs.target_tokens.max()


@settings(max_examples=8)
@given(kept=st.one_of(st.none(), st.integers(0, 40)), dequantised=st.booleans(), fast=st.booleans())
def test_out_of_memory_is_one_line_with_advice(
    prepared: Prepared, packs: Packs, plan: dict[str, Any], kept: int | None, dequantised: bool, fast: bool
) -> None:
    failing = _Watched(GeneralEngine(adapted(prepared)), fails=True)
    decided = {
        "engine": "fast" if fast else "general",
        "layers_kept": kept,
        "dequantised_base": dequantised,
        "memory_layer_kept_bytes": 713_000_000,
    }
    before = state(failing.model)
    with pytest.raises(
        CoraxError, match=r"out of memory in two trial steps.*planned .* GB.*take train\.|a smaller"
    ) as caught:
        probe(failing, packs, TrainSettings(), plan | decided)
    text = str(caught.value)
    assert "\n" not in text and "plan.max_length below 1536" in text
    assert ("train.layers_kept below" in text) == bool(kept)
    assert all(torch.equal(old, new) for old, new in zip(before, state(failing.model), strict=True))


def test_training_takes_what_the_plan_decided(plan: dict[str, Any]) -> None:
    as_planned = stages.module("train")._as_planned
    decided = as_planned(TrainSettings(), plan | {"layers_kept": 7, "dequantised_base": True})
    assert (decided.layers_kept, decided.dequantised_base) == (7, True)
    undecided = as_planned(TrainSettings(layers_kept=3), plan | {"layers_kept": None, "dequantised_base": None})
    assert (undecided.layers_kept, undecided.dequantised_base) == (3, None)
