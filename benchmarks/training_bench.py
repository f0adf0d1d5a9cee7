"""One process of benchmarks/training.py: its device and packs, timed steps, and the results it has written."""

import gc
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import torch
from table import Row
from training_model import Shape, packs, reset_adapter

from corax import hardware
from corax.settings.train import TrainSettings
from corax.train.optimization import make_optimizer
from corax.train.packs import Batch

GB = 10**9


class Bench:
    """A device, its packs, and the file of results."""

    def __init__(self, shape: Shape, results: Path) -> None:
        self.shape, self.results = shape, results
        self.device = hardware.device()
        self.dtype = hardware.compute_dtype(self.device)
        self.gpu = self.device.type == "cuda"
        if self.gpu:
            self._expandable_segments()
        self.total = torch.cuda.get_device_properties(0).total_memory if self.gpu else 0
        self.packs = list(packs(shape, 4))

    def _expandable_segments(self) -> None:
        """Less of the memory limit lost to fragmentation; not every virtual machine can."""
        torch.cuda.memory._set_allocator_settings("expandable_segments:True")
        try:
            torch.zeros(1, device=self.device)
        except RuntimeError as error:
            print(f"no expandable segments: {str(error).splitlines()[0]}", flush=True)
            torch.cuda.memory._set_allocator_settings("expandable_segments:False")

    def report(self, **result: Any) -> None:
        """Print a result and keep it."""
        print(json.dumps(result), flush=True)
        self._keep(result)

    def report_rows(self, *rows: Row) -> None:
        """Keep rows of the table."""
        self._keep({"rows": [asdict(row) for row in rows]})

    def _keep(self, result: dict[str, Any]) -> None:
        with self.results.open("a") as file:
            file.write(json.dumps(result) + "\n")

    def attempt(self, name: str, work: Callable[[], None]) -> bool:
        """Whether `work` ran; what it raised is printed and the memory it held is free."""
        try:
            work()
            return True
        except Exception as error:  # a contender may fail in any way
            problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            print(f"{name}: failed, {problem}", flush=True)
            if not isinstance(error, torch.OutOfMemoryError):
                traceback.print_exc()
            return False
        finally:
            self.free()

    def free(self) -> None:
        """Give back what nothing refers to."""
        gc.collect()
        if self.gpu:
            torch.cuda.empty_cache()

    def limited(self, gigabytes: float) -> None:
        """Let the allocator have no more than `gigabytes`."""
        if self.gpu:
            torch.cuda.set_per_process_memory_fraction(min(1.0, gigabytes * GB / self.total))

    def peak(self) -> float:
        """The most GB that the allocator had given out since it was reset."""
        return round(torch.cuda.max_memory_allocated() / GB, 3) if self.gpu else 0.0

    def chosen(self) -> list[Batch]:
        """The pack of each step, those before the timed ones included."""
        return [self.packs[number % len(self.packs)] for number in range(self.shape.warmup + self.shape.steps)]

    def tokens_per_second(self, clock: "Clock") -> float:
        """The median of the timed steps."""
        steps = list(zip(self.chosen()[1:], clock.seconds(), strict=True))[self.shape.warmup - 1 :]
        return round(statistics.median(batch.input_ids.numel() / seconds for batch, seconds in steps), 1)

    def time(self, name: str, settings: str, model: Any, loss_sum: Callable[[Batch, int], torch.Tensor]) -> None:
        """Time steps of `loss_sum(batch, seed)` with clipping and AdamW on `model`'s adapter."""
        parameters = reset_adapter(model)
        optimizer = make_optimizer({str(n): each for n, each in enumerate(parameters)}, TrainSettings())
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
        losses, clock, begun = [], Clock(self.gpu), time.perf_counter()
        for number, batch in enumerate(self.chosen()):
            optimizer.zero_grad()
            loss = loss_sum(batch, number) / len(batch.targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            losses.append(loss.detach())
            clock.tick()
        for parameter in parameters:
            parameter.grad = None
        self.report(
            name=name,
            settings=settings,
            tokens_per_second=self.tokens_per_second(clock),
            peak_gb=self.peak(),
            reserved_gb=round(torch.cuda.max_memory_reserved() / GB, 3) if self.gpu else 0.0,
            first_loss=losses[0].item(),
            last_loss=losses[-1].item(),
            seconds=round(time.perf_counter() - begun, 1),
        )


class Clock:
    """When each step ended, on the device, so that the program never waits for it: as in training itself."""

    def __init__(self, gpu: bool) -> None:
        self.gpu = gpu
        self.ends: list[Any] = []

    def tick(self) -> None:
        """A step has been given to the device."""
        if not self.gpu:
            self.ends.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.ends.append(event)

    def seconds(self) -> list[float]:
        """From each step's end to the next one's."""
        if not self.gpu:
            return [end - start for start, end in pairwise(self.ends)]
        self.ends[-1].synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in pairwise(self.ends)]
