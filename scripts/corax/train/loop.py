"""The training loop: short, linear, resumable at every optimizer step.

Nothing depends on how often it was interrupted: the order of packs is the plan's, the learning rate is a
function of the step, dropout is seeded by the pack's number, and the rest is in the checkpoint.
"""

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState

from corax.errors import CoraxError
from corax.progress import Progress
from corax.settings.train import TrainSettings
from corax.stop import StopRequest
from corax.train import checkpoint, tensors
from corax.train.ahead import read_ahead
from corax.train.checkpoint import Checkpoint
from corax.train.curves import Curves
from corax.train.engine import Engine
from corax.train.optimization import learning_rate, make_optimizer, set_learning_rate, trained
from corax.train.packs import Batch, Packs
from corax.train.sharded import is_divided
from corax.train.validation import best_validation, validations_since_best

log = logging.getLogger("corax")


class TrainingPaused(Exception):
    """Training stopped on a signal, at a step boundary, with a checkpoint."""


@dataclass(frozen=True)
class _Launched:
    """A step that the device may still be computing: its row of metrics so far, and the figures to come.

    `figures` (3,) on the host: loss, norm of the gradient, and whether a rank was asked to stop; there once the
    GPU has reached `ready`, on a CPU at once.
    """

    row: dict[str, Any]
    figures: torch.Tensor
    ready: torch.cuda.Event | None


class Loop:
    """Trains the adapter of `engine`'s model on `train` packs; `run` returns the metrics of all steps.

    With several ranks (an initialised process group) each takes every n-th pack of a step, and gradients
    are summed over ranks once a step; those of weights that are divided over the ranks, by themselves.
    """

    def __init__(
        self,
        engine: Engine,
        train: Packs,
        validation: Packs,
        settings: TrainSettings,
        checkpoints: Path,
        stop: StopRequest,
        curves: Curves | None = None,
    ) -> None:
        self.engine, self.train, self.validation = engine, train, validation
        self.settings, self.checkpoints = settings, checkpoints
        self.device = engine.device
        self.adapter = trained(engine.model)
        self.parameters = list(self.adapter.values())
        self.optimizer = make_optimizer(self.adapter, settings)
        self.ranks = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.divided = is_divided(engine.model)
        self.steps = int(train.step[-1]) + 1
        self.metrics: list[dict[str, Any]] = []
        self.best: Mapping[str, torch.Tensor] | None = None
        self.seconds = 0.0
        self.tokens = 0
        self._stop, self._curves = stop, curves or Curves(None)
        self._launched: _Launched | None = None
        self._agreed_stop = False
        self._note = ""

    def run(self) -> list[dict[str, Any]]:
        """Train from the newest checkpoint to the last step; raises TrainingPaused after a stop signal."""
        done = self._resume()
        self._wait_for_ranks()  # after the last step the first rank is soon to remove what others read
        self._curves.start(done)
        numbers = [pack for step in range(done, self.steps) for pack, _ in self._passes(self.train.of_step(step))]
        with (
            Progress("train", self.steps, "step", start=done) as progress,
            closing(read_ahead(self.train.batch, numbers)) as batches,
        ):
            # Patience ends at a validation: between them there is nothing to ask.
            finished = done == self.steps or self._out_of_patience()
            while not finished:
                stop = self._step(done, batches)
                done += 1
                if done % self.settings.eval_steps == 0 or done == self.steps:
                    self._validate(done)
                    finished = done == self.steps or self._out_of_patience()
                if done % self.settings.save_steps == 0 or finished or stop:
                    self._save(done)
                progress.advance(1, self._note)
                if stop and not finished:
                    raise TrainingPaused(f"stopped by a signal after step {done} of {self.steps}, with a checkpoint")
        if self.best is not None:
            self._take_over(self.best)
        return self.metrics

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all ranks a second, validation and checkpoints left out."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def _passes(self, packs: range) -> list[tuple[int, float]]:
        """This rank's share of `packs`, and how much each counts.

        Ranks that share their weights gather them together: one without a last pack takes the first, which counts 0.
        """
        own = [(pack, 1.0) for pack in packs[self.rank :: self.ranks]]
        idle = self.divided and len(own) < len(packs[:: self.ranks])
        return [*own, (packs[0], 0.0)] if idle else own

    def _step(self, step: int, batches: Iterator[Batch]) -> bool:
        """Make step number `step` (from 0); whether to stop after it."""
        start = time.monotonic()
        launched = self._launch(step, batches)
        # The device computes this step while the figures of the one before are read.
        self._read()
        self._launched = launched
        stop = self._stop.made if self.ranks == 1 else self._agreed_stop
        done = step + 1
        if stop or done == self.steps or done % self.settings.eval_steps == 0 or done % self.settings.save_steps == 0:
            self._read()
        self.seconds += time.monotonic() - start
        self.tokens += launched.row["tokens"]
        return stop

    def _launch(self, step: int, batches: Iterator[Batch]) -> _Launched:
        packs = self.train.of_step(step)
        targets = int(self.train.target_tokens[packs.start : packs.stop].sum())
        tokens = int(self.train.token_counts[packs.start : packs.stop].sum())
        rate = learning_rate(step, self.steps, self.settings)
        set_learning_rate(self.optimizer, rate)
        loss = torch.zeros((), device=self.device)
        stop = torch.full((), float(self._stop.made), device=self.device)
        self.optimizer.zero_grad()
        for pack, weight in self._passes(packs):
            part = weight * self.engine.loss_sum(next(batches), _dropout_seed(self.settings.seed, pack)) / targets
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
        for parameter in self.parameters:
            if parameter.grad is None:  # a rank without a pack in this step
                parameter.grad = torch.zeros_like(parameter)
        gradients = [] if self.divided else [parameter.grad for parameter in self.parameters]
        self._sum_over_ranks([loss, stop, *gradients])
        norm = tensors.whole(torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm))
        self.optimizer.step()
        row = {
            "step": step + 1,
            "loss": None,
            "learning_rate": rate,
            "grad_norm": None,
            "tokens": tokens,
            "target_tokens": targets,
        }
        # Not item(), which would wait for all that the GPU has been given by then, the next step too.
        figures = torch.stack([loss, norm, stop]).to("cpu", non_blocking=True)
        ready = torch.cuda.Event() if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        if ready is not None:
            ready.record()
        return _Launched(row, figures, ready)

    def _read(self) -> None:
        """Wait for the figures of the step that was launched last, if they were not read yet."""
        if self._launched is None:
            return
        if self._launched.ready is not None:
            self._launched.ready.synchronize()
        loss, norm, stop = self._launched.figures.tolist()
        row = {**self._launched.row, "loss": loss, "grad_norm": norm}
        _check_finite(row, "loss", "grad_norm")
        self._agreed_stop = bool(stop)
        self._launched = None
        self._note = f"loss {row['loss']:.3f}, {self.tokens_per_second:.0f} tokens/s"
        self._record(row)

    def _record(self, row: dict[str, Any]) -> None:
        self.metrics.append(row)
        self._curves.write(row)

    @torch.no_grad()
    def _validate(self, done: int) -> None:
        """Record the loss in nats per target token over all validation packs, and what follows from it."""
        total = torch.zeros((), device=self.device)
        for pack, weight in self._passes(range(len(self.validation))):
            total += weight * self.engine.loss_sum(self.validation.batch(pack), seed=None)
        self._sum_over_ranks([total])
        if self.ranks > 1:
            dist.broadcast(total, src=0)  # so that all ranks decide by the same number, to the bit
        loss = total.item() / int(self.validation.target_tokens.sum())
        log.info("step %d: validation loss %.4f", done, loss)
        row: dict[str, Any] = {"step": done, "validation_loss": loss}
        _check_finite(row, "validation_loss")
        self._record(row)
        if self.settings.load_best_model_at_end and self._keeps_best and best_validation(self.metrics) == done:
            self.best = {
                name: tensors.local(value.detach()).to("cpu", copy=True) for name, value in self.adapter.items()
            }
        if self._out_of_patience() and done < self.steps:
            row["stopped"] = f"no lower validation loss in {self.settings.early_stopping_patience} validations"
            log.info("step %d: %s; training ends here", done, row["stopped"])

    def _out_of_patience(self) -> bool:
        patience = self.settings.early_stopping_patience
        return patience is not None and validations_since_best(self.metrics) >= patience

    def _sum_over_ranks(self, values: Iterable[torch.Tensor | None]) -> None:
        """Replace each of `values` by its sum over ranks, in one message."""
        if self.ranks == 1:
            return
        present = [tensor for tensor in values if tensor is not None]
        flat = torch.cat([tensor.reshape(-1) for tensor in present])
        dist.all_reduce(flat)
        for tensor, part in zip(present, torch.split(flat, [tensor.numel() for tensor in present]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def _resume(self) -> int:
        """Take over the newest checkpoint; how many steps are done."""
        found = checkpoint.load(self.checkpoints, (self.rank, self.ranks) if self.divided else tensors.ALL)
        if found is None:
            return 0
        self._take_over(found.adapter)
        checkpoint.restore_optimizer(self.optimizer, found.optimizer)
        self.metrics = list(found.metrics)
        self.best = found.best if self._keeps_best else None
        log.info("going on after step %d of %d", found.step, self.steps)
        return found.step

    @property
    def _keeps_best(self) -> bool:
        """Whether this rank keeps the best weights: the first, or each its rows."""
        return self.rank == 0 or self.divided

    @torch.no_grad()
    def _take_over(self, adapter: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self.adapter.items():
            tensors.local(parameter).copy_(adapter[name])

    def _save(self, step: int) -> None:
        best = self.best and tensors.Divided(self.best, self.adapter)
        found = Checkpoint(step, self.adapter, checkpoint.optimizer_tensors(self.optimizer), self.metrics, best)
        if self.rank == 0:
            checkpoint.save(self.checkpoints, found, self.settings.save_total_limit)
        elif self.divided:
            found.gather()
        self._wait_for_ranks()

    def _wait_for_ranks(self) -> None:
        if self.ranks > 1:
            PartialState().wait_for_everyone()


def _check_finite(row: Mapping[str, Any], *keys: str) -> None:
    """Raise CoraxError if a figure is infinite or nan: no later step would mend the weights."""
    for key in keys:
        if not math.isfinite(row[key]):
            raise CoraxError(
                f"step {row['step']}: {key} is {row[key]}, training has diverged; lower train.learning_rate "
                "or train.max_grad_norm, or raise train.warmup_ratio"
            )


def _dropout_seed(seed: int, pack: int) -> int:
    return (seed << 32) + pack
