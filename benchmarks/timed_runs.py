"""Runs of a configuration side by side, with so many steps each that all of them end within the seconds given.

runs = TimedRuns(pipeline, names, devices, seconds=300, paced=("lora", "full"))
runs.all(compare)
"""

import argparse
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline import Gpu, Pipeline, side_by_side

PACE_STEPS = 10
"""The first ones load kernels."""
PLANS_AT_ONCE = 8


class TimedRuns:
    """`names` are the runs in their order, `paced` those whose short trainings tell the pace of all.

    `after` seconds are kept for merging, sampling and evaluating a run.
    The first of `paced` stands for all whose way is not among them. No run is begun that would end too late; with fewer
    steps than `least` the runs would differ by chance, so then the last ones are left out.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        names: Sequence[str],
        devices: Sequence[Gpu],
        seconds: float,
        paced: Sequence[str],
        after: float,
    ) -> None:
        self.pipeline, self.names, self.devices, self.paced, self.after = pipeline, names, devices, paced, after
        self.end = time.monotonic() + seconds
        self.finished: list[str] = []
        self._began = time.monotonic()
        self._training = 0.0
        self._writing = threading.Lock()

    def all(self, after_each: Callable[[list[str]], None], least: int, most: int, steps: int | None = None) -> None:
        """Train, merge, sample and evaluate; `after_each` gets the finished runs. With `steps` no pace is measured."""
        self.pipeline.prepare(self.names)
        self.say("model and data are there")
        chosen = steps or self._steps_in_time(least, most)
        with ThreadPoolExecutor(PLANS_AT_ONCE) as pool:
            list(pool.map(lambda name: self.pipeline.plan(name, chosen), self.names))
        self.say(f"plans of {chosen} steps are there")
        side_by_side(self.names, self.devices, lambda name, device: self._one(name, device, after_each))
        self.say(f"{len(self.finished)} of {len(self.names)} runs are done")

    def say(self, text: str) -> None:
        """A line of progress."""
        print(f"{time.monotonic() - self._began:.0f} s: {text}", flush=True)

    def _one(self, name: str, device: Gpu, after_each: Callable[[list[str]], None]) -> None:
        with device.training:
            if time.monotonic() + self._training + self.after > self.end:
                self.say(f"{name}: not begun, it would end too late")
                return
            self.pipeline.train(name, device)
        self.say(f"{name}: trained, {self.pipeline.measured(self.pipeline.folder(name))['train_seconds']} s of steps")
        self.pipeline.merge(name, device)
        self.pipeline.sample(name, device)
        self.pipeline.evaluate(name, device)
        with self._writing:
            self.finished = [each for each in self.names if each in (*self.finished, name)]
            self.say(f"{name}: evaluated")
            after_each(self.finished)

    def _steps_in_time(self, least: int, most: int) -> int:
        with ThreadPoolExecutor() as pool:
            paces = list(pool.map(self._pace, range(len(self.paced))))
        besides = sorted(each for _, each in paces)[len(paces) // 2]  # not one that compiled
        steps = {_way(name): step for name, (step, _) in zip(self.paced, paces, strict=True)}
        total = sum(steps.get(_way(name), paces[0][0]) for name in self.names)
        # Trainings at once on a GPU slow each other down, to half the gain (a guess).
        width = sum(1 + (device.runs - 2) / 2 for device in self.devices)
        left = (self.end - time.monotonic() - self.after) * width
        possible = int((left - besides * len(self.names)) / total)
        chosen = min(most, max(least, possible))
        self._training = besides + chosen * paces[0][0]
        named = ", ".join(f"{way} {step:.2f} s" for way, step in steps.items())
        self.say(f"a step takes {named}, a training {besides:.1f} s besides: time for {possible} steps, {chosen} taken")
        return chosen

    def _pace(self, number: int) -> tuple[float, float]:
        """Seconds of a step of paced[number], and of its training besides the steps."""
        name, folder = self.paced[number], Path("results/pace", self.paced[number])
        device = self.devices[number % len(self.devices)]
        self.pipeline.plan(name, PACE_STEPS, folder)
        with device.training:
            began = time.monotonic()
            self.pipeline.train(name, device, folder)
            seconds = time.monotonic() - began
        steps: float = self.pipeline.measured(folder)["train_seconds"]
        return steps / PACE_STEPS, seconds - steps


def parser(description: str, seconds: float) -> argparse.ArgumentParser:
    """The options that programs with timed runs share; `seconds` is the default."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("package", type=Path, help="vaderSentiment-3.3.1.tar.gz")
    result.add_argument("folder", type=Path, help="folder to work in")
    result.add_argument("--seconds", type=float, default=seconds, help="in which to end (default: %(default)s)")
    result.add_argument("--steps", type=int, help="steps of each run instead of as many as there is time for")
    result.add_argument("--at-once", type=int, default=1, help="trainings at a time on a GPU (default: %(default)s)")
    return result


def _way(name: str) -> str:
    """What a run's pace depends on: its name without the data set's."""
    return name.rsplit("-", 1)[0]
