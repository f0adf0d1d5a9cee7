"""The training loop in this process: optimizers, schedules, early stopping, the best adapter, curves, reading ahead."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import interruptions
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft.optimizers import create_loraplus_optimizer
from prepared import Prepared
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import get_scheduler

from corax.errors import CoraxError
from corax.model import load_quantised
from corax.settings.lora import LoraSettings
from corax.settings.train import TrainSettings
from corax.stop import StopRequest
from corax.tokens import TokenShards
from corax.train import checkpoint
from corax.train.adapter import add_adapter
from corax.train.ahead import read_ahead
from corax.train.curves import Curves
from corax.train.general import GeneralEngine
from corax.train.loop import Loop, TrainingPaused
from corax.train.optimization import learning_rate, make_optimizer
from corax.train.packs import Packs
from corax.train.validation import best_validation, validations_since_best

STEPS = 3
OPTIMIZERS = ("adamw_torch", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit")


@dataclass
class Trainer:
    """A tiny 4-bit model with a fresh adapter, and packs of real quantum programs."""

    prepared: Prepared
    engine: GeneralEngine
    initial: dict[str, torch.Tensor]

    def adapter(self) -> dict[str, torch.Tensor]:
        """The adapter as it is now."""
        return {
            name: each.detach().clone() for name, each in self.engine.model.named_parameters() if each.requires_grad
        }

    def loop(self, work: Path, settings: TrainSettings, curves: Curves | None = None, steps: int = STEPS) -> Loop:
        """A loop that starts from the fresh adapter, or from a checkpoint in `work`."""
        with torch.no_grad():
            for name, parameter in self.engine.model.named_parameters():
                if name in self.initial:
                    parameter.copy_(self.initial[name])
        torch.set_num_threads(1)
        packs, validation = (
            Packs(self.prepared.plan, TokenShards([self.prepared.tokens], part), part)
            for part in ("train", "validation")
        )
        with StopRequest() as stop:
            loop = Loop(self.engine, packs, validation, settings, work, stop, curves)
        loop.steps = steps
        return loop

    def interrupted(self, work: Path, settings: TrainSettings, steps: int = STEPS) -> Loop:
        """The loop after a training that was stopped at each step and started again."""
        for _ in range(steps + 1):
            loop = self.loop(work, settings, steps=steps)
            loop._stop.made = True
            try:
                loop.run()
            except TrainingPaused:
                continue
            return loop
        raise AssertionError("it does not get on")


@pytest.fixture(scope="module")
def trainer(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """LoRA matrices of 4,096 numbers and more: smaller ones bitsandbytes does not keep in 8 bits."""
    prepared = interruptions.small_plan(prepared, tmp_path_factory.mktemp("small"))
    base = load_quantised(prepared.model, torch.float32, torch.device("cpu"))
    result = Trainer(prepared, GeneralEngine(add_adapter(base, LoraSettings(r=64, lora_dropout=0.1), seed=0)), {})
    result.initial = result.adapter()
    return result


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether the tensors are the same, bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("ratio", [None, 16.0])
@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_every_optimizer_learns_and_goes_on_bitwise(
    trainer: Trainer, tmp_path: Path, optim: str, ratio: float | None
) -> None:
    if ratio and optim.startswith("paged"):
        pytest.skip("on a CPU the paged ones are the others")
    settings = TrainSettings.model_validate(
        {"optim": optim, "loraplus_lr_ratio": ratio, "learning_rate": 1e-3, "eval_steps": 10, "save_steps": 10}
    )
    loop = trainer.loop(tmp_path / "one", settings)
    metrics, adapter = loop.run(), trainer.adapter()
    state = checkpoint.optimizer_tensors(loop.optimizer)
    assert ("8bit" in optim) == (torch.uint8 in {tensor.dtype for tensor in state.values()})
    again = trainer.interrupted(tmp_path / "two", settings)
    assert again.metrics == metrics and same(trainer.adapter(), adapter)
    assert same(checkpoint.optimizer_tensors(again.optimizer), state)
    assert metrics[-2]["loss"] < metrics[0]["loss"]


def test_loraplus_takes_the_steps_of_peft(trainer: Trainer, tmp_path: Path) -> None:
    settings = TrainSettings(learning_rate=1e-3, loraplus_lr_ratio=16, warmup_ratio=0, weight_decay=0.1)
    loop = trainer.loop(tmp_path, settings, steps=1)
    loop.run()
    ours = trainer.adapter()
    gradients = [parameter.grad for parameter in loop.parameters]
    trainer.loop(tmp_path / "fresh", settings)
    theirs = create_loraplus_optimizer(
        trainer.engine.model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16, loraplus_weight_decay=0.1, eps=1e-8
    )
    for parameter, gradient in zip(loop.parameters, gradients, strict=True):
        parameter.grad = gradient
    theirs.step()
    for name, value in trainer.adapter().items():
        torch.testing.assert_close(ours[name], value)


def test_loraplus_without_lora_is_one_line() -> None:
    with pytest.raises(CoraxError, match=r"train.loraplus_lr_ratio: 16.0 found"):
        make_optimizer({"layer.ia3_l": torch.nn.Parameter(torch.ones(2))}, TrainSettings(loraplus_lr_ratio=16))


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("steps", "warmup"), [(40, 0.1), (7, 0.5), (5, 0.0), (3, 0.5)])
def test_schedules_are_those_of_transformers(kind: str, steps: int, warmup: float) -> None:
    """But for the warm-up, which does not waste its first step at a rate of 0."""
    settings = TrainSettings.model_validate({"learning_rate": 2e-3, "lr_scheduler_type": kind, "warmup_ratio": warmup})
    count = math.ceil(warmup * steps)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=2e-3)
    name = "constant_with_warmup" if kind == "constant" else kind
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=count, num_training_steps=steps)
    theirs = []
    for _ in range(steps + 1):
        theirs.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    ours = [learning_rate(step, steps, settings) for step in range(steps)]
    assert ours == pytest.approx(theirs[1 : count + 1] + theirs[count:steps])


def test_training_ends_early_on_the_same_step_however_often_it_was_interrupted(
    trainer: Trainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = TrainSettings(learning_rate=0.1, lr_scheduler_type="constant", eval_steps=1, early_stopping_patience=2)
    with caplog.at_level("INFO"):
        metrics = trainer.loop(tmp_path / "one", settings, steps=5).run()
    adapter = trainer.adapter()
    last = metrics[-1]
    assert last["step"] < 5 and last["stopped"] == "no lower validation loss in 2 validations"
    assert f"step {last['step']}: {last['stopped']}" in caplog.text
    losses = [row["validation_loss"] for row in metrics if "validation_loss" in row]
    assert losses.index(min(losses)) == len(losses) - 3
    again = trainer.interrupted(tmp_path / "two", settings, steps=5)
    assert again.metrics == metrics and same(trainer.adapter(), adapter)


def test_the_best_adapter_is_written_however_often_it_was_interrupted(trainer: Trainer, tmp_path: Path) -> None:
    values = {"learning_rate": 0.1, "lr_scheduler_type": "constant", "eval_steps": 1, "save_total_limit": 1}
    settings = TrainSettings.model_validate({**values, "load_best_model_at_end": True})
    loop = trainer.loop(tmp_path / "one", settings, steps=3)
    metrics = loop.run()
    best = best_validation(metrics)
    assert best is not None and best < 3, "nothing to show: the last adapter is the best"
    adapter = trainer.adapter()
    total = sum(trainer.engine.loss_sum(loop.validation.batch(n), None).item() for n in range(len(loop.validation)))
    found = total / int(loop.validation.target_tokens.sum())
    assert found == pytest.approx(min(row["validation_loss"] for row in metrics if "validation_loss" in row))
    trainer.interrupted(tmp_path / "two", settings, steps=3)
    assert same(trainer.adapter(), adapter)
    trainer.loop(tmp_path / "three", TrainSettings.model_validate(values), steps=3).run()
    assert not same(trainer.adapter(), adapter)


@given(st.lists(st.floats(), max_size=8))
def test_best_validation_is_the_first_of_the_lowest(losses: list[float]) -> None:
    metrics = [{"step": 2 * n, "validation_loss": loss} for n, loss in enumerate(losses, 1)]
    rows: list[dict[str, Any]] = [{"step": 1, "loss": 0.0}, *metrics]
    best = best_validation(rows)
    numbers = [loss for loss in losses if not math.isnan(loss)]
    if not losses:
        assert best is None and validations_since_best(rows) == 0
    elif numbers and min(numbers) < math.inf:
        assert best == 2 * (1 + losses.index(min(numbers)))
        assert validations_since_best(rows) == len(losses) - 1 - losses.index(min(numbers))


def test_curves_are_those_of_the_metrics_after_an_interruption_too(trainer: Trainer, tmp_path: Path) -> None:
    settings = TrainSettings(learning_rate=1e-3, eval_steps=2, tensorboard=True)
    for _ in range(2):
        with Curves(tmp_path / "curves") as curves:
            loop = trainer.loop(tmp_path / "work", settings, curves)
            loop._stop.made = not loop.checkpoints.exists()
            try:
                loop.run()
            except TrainingPaused:
                curves.write({"step": 2, "loss": 99.0})  # as if it had been killed after a step without a checkpoint
    events = EventAccumulator(str(tmp_path / "curves"))
    events.Reload()
    for key, tag in (("loss", "train/loss"), ("grad_norm", "train/grad_norm"), ("validation_loss", "eval/loss")):
        found = {event.step: event.value for event in events.Scalars(tag)}
        wanted = {row["step"]: row[key] for row in loop.metrics if key in row}
        assert found == pytest.approx(wanted), tag


@given(st.lists(st.integers(), max_size=6))
def test_reading_ahead_keeps_the_order(numbers: list[int]) -> None:
    assert list(read_ahead(lambda number: number + 1, numbers)) == [number + 1 for number in numbers]


def test_an_error_while_reading_ahead_comes_at_its_place() -> None:
    def read(number: int) -> int:
        if number == 2:
            raise CoraxError("row 2 is broken")
        return number

    def taken() -> Iterator[int]:
        yield from read_ahead(read, range(5))

    batches = taken()
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(CoraxError, match="row 2 is broken"):
        next(batches)


@given(ranks=st.integers(1, 8), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5), divided=st.booleans())
def test_the_ranks_of_a_step_share_its_packs(ranks: int, sizes: list[int], divided: bool) -> None:
    """In the order of the plan, none left out and none twice, whatever the number of ranks.

    Ranks that share their weights make as many passes each.
    """
    packs = object.__new__(Packs)
    packs.step = np.repeat(np.arange(len(sizes)), sizes)
    loop = object.__new__(Loop)
    loop.train, loop.ranks, loop.divided = packs, ranks, divided
    for step, size in enumerate(sizes):
        shares = []
        for loop.rank in range(ranks):
            passes = loop._passes(packs.of_step(step))
            assert not divided or len(passes) == -(-size // ranks)
            shares.append([pack for pack, weight in passes if weight])
        turns = [share[turn] for turn in range(size) for share in shares if turn < len(share)]
        assert turns == list(packs.of_step(step))
