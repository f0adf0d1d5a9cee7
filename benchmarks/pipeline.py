"""The stages of a configuration without Snakemake, for a machine that has none: their scripts, in one folder.

    pipeline = Pipeline(configuration, Path("work/real"))
    pipeline.prepare(["real"])
    pipeline.plan("real", steps=100)
    pipeline.train("real", gpu)

The folder has the layout of docs/artifacts.md, and a log a stage in logs/. What a GPU does runs in Python processes
that have imported everything beforehand (`Gpu`), so that a stage does not begin with ten seconds of imports.
"""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = REPOSITORY / "scripts"
sys.path.insert(0, str(SCRIPTS))

from corax import cli, config  # noqa: E402 - found below scripts/
from corax.artifact import open_artifact  # noqa: E402
from corax.errors import CoraxError  # noqa: E402
from corax.settings.base import Settings  # noqa: E402
from corax.settings.download import command_line  # noqa: E402
from corax.settings.plan import PlanSettings  # noqa: E402

MOST_AT_ONCE = 32
"""Stages on the CPU that run at once."""
READY = """
import json, os, runpy, sys
sys.path.insert(0, sys.argv[1])
for stage in ("train", "merge", "sample", "evaluate"):
    runpy.run_path(f"{sys.argv[1]}/{stage}.py")
command, log = json.loads(sys.stdin.readline())
output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
os.dup2(output, 1)
os.dup2(output, 2)
sys.argv = command
runpy.run_path(command[0], run_name="__main__")
"""


class Gpu:
    """One GPU, by its number in CUDA_VISIBLE_DEVICES, or the CPU (""), and Python processes that wait for a stage."""

    def __init__(self, number: str, root: Path, trainings: int = 1) -> None:
        self.number = number
        self.training = threading.Semaphore(trainings)
        """To be held while a run trains, where its time matters."""
        self.runs = trainings + 1
        """Runs that share the GPU: while one is sampled and evaluated, another trains."""
        self._root = root
        self._waiting: queue.Queue[subprocess.Popen[str]] = queue.Queue()
        for _ in range(self.runs):
            self._start_one()

    def run(self, command: Sequence[str], log: Path) -> int:
        """The exit code of a script in the folder `root`, its output in `log`."""
        process = self._waiting.get()
        self._start_one()
        process.communicate(json.dumps([list(command), str(log)]) + "\n")
        return process.returncode

    def close(self) -> None:
        """End the processes that still wait."""
        while not self._waiting.empty():
            process = self._waiting.get()
            process.kill()
            process.communicate()

    def _start_one(self) -> None:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": self.number}
        command = [sys.executable, "-c", READY, str(SCRIPTS)]
        with (self._root / "imports.log").open("a") as log:
            self._waiting.put(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    cwd=self._root,
                    env=environment,
                    text=True,
                )
            )


@contextmanager
def gpus(root: Path, trainings: int = 1) -> Iterator[list[Gpu]]:
    """The GPUs that this process may see, the CPU if there is none, for so many trainings at a time on each."""
    import torch

    root.mkdir(parents=True, exist_ok=True)
    count = torch.cuda.device_count()
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    found = [Gpu(number, root, trainings) for number in (seen[:count] or [""])]
    try:
        yield found
    finally:
        for each in found:
            each.close()


class Pipeline:
    """The stages of a configuration's runs in the folder `root`."""

    def __init__(self, configuration: config.Config, root: Path) -> None:
        self.configuration, self.root = configuration, root
        root.mkdir(parents=True, exist_ok=True)

    def prepare(self, names: Iterable[str]) -> None:
        """Models, text and tokens of these runs, shards side by side."""
        runs = [self.configuration.runs[name] for name in names]
        models = sorted({run.model for run in runs})
        shards = [(data, shard) for data in sorted({run.dataset for run in runs}) for shard in self._shards(data)]
        pairs = sorted({(run.dataset, run.model) for run in runs})
        tokens = [(data, model, shard) for data, model in pairs for shard in self._shards(data)]
        with ThreadPoolExecutor(min(MOST_AT_ONCE, os.cpu_count() or 1)) as pool:
            waiting = [pool.submit(self._download_model, model) for model in models]
            waiting += [pool.submit(self._make_text, *each) for each in shards]
            for each in waiting:
                each.result()
            list(pool.map(lambda each: self._make_tokens(*each), tokens))

    def plan(self, name: str, steps: int | None = None, folder: Path | None = None) -> None:
        """Plan so many steps, or as the configuration says."""
        run = self.configuration.runs[name]
        settings = PlanSettings(**{**run.plan.model_dump(), "max_steps": steps or run.plan.max_steps})
        output = (folder or self.folder(name)) / "plan"
        sections = {"plan": settings, "lora": run.lora, "tuning": run.tuning, "train": run.train}
        inputs = ("--model", self._model(name), "--tokens", *self._tokens(name))
        self.stage("plan", *inputs, "--output", output, log=f"-{output.parent.name}", **sections)

    def train(self, name: str, gpu: Gpu, folder: Path | None = None) -> None:
        """Train as planned: on `gpu`, or with a rank on each GPU that this process sees."""
        run = self.configuration.runs[name]
        folder = folder or self.folder(name)
        work = ("--work", Path("work", folder.name))
        inputs = ("--model", self._model(name), "--plan", folder / "plan", "--tokens", *self._tokens(name), *work)
        sections = {"lora": run.lora, "tuning": run.tuning, "train": run.train}
        place = gpu if run.plan.devices == 1 else run.plan.devices
        self.stage("train", *inputs, "--output", folder / "adapter", log=f"-{folder.name}", place=place, **sections)

    def merge(self, name: str, gpu: Gpu) -> None:
        """The adapter added onto the base."""
        folder = self.folder(name)
        inputs = ("--model", self._model(name), "--adapter", folder / "adapter", "--tokens", *self._tokens(name))
        settings = self.configuration.runs[name].merge
        self.stage("merge", *inputs, "--output", folder / "merged", log=f"-{name}", place=gpu, merge=settings)

    def sample(self, name: str, gpu: Gpu) -> None:
        """Completions of the tuned model."""
        run, folder = self.configuration.runs[name], self.folder(name)
        dataset = self.configuration.datasets[run.dataset]
        texts = [Path("results/datasets", run.dataset, "text", shard) for shard in self._shards(run.dataset)]
        inputs = ("--model", folder / "merged", "--text", *texts, "--task", dataset.task)
        output = ("--work", Path("work", name, "samples"), "--output", folder / "samples.parquet")
        sections = {"sample": run.sample, "pretokenize": dataset.pretokenize}
        self.stage("sample", *inputs, *output, log=f"-{name}", place=gpu, **sections)

    def evaluate(self, name: str, gpu: Gpu) -> None:
        """Base against tuned model."""
        run, folder = self.configuration.runs[name], self.folder(name)
        models = ("--base", self._model(name), "--tuned", folder / "merged", "--tokens", *self._tokens(name))
        samples = ("--samples", folder / "samples.parquet", "--task", self.configuration.datasets[run.dataset].task)
        output = ("--output", folder / "evaluation.json")
        self.stage("evaluate", *models, *samples, *output, log=f"-{name}", place=gpu, evaluate=run.evaluate)

    def report(self, names: Sequence[str]) -> None:
        """One page for these runs."""
        self.stage("report", "--runs", *map(self.folder, names), "--output", "results/report.html")

    def folder(self, name: str) -> Path:
        """Where a run's artifacts lie below `root`."""
        return Path("results/runs", name)

    def measured(self, folder: Path) -> dict[str, Any]:
        """What the training in a run's folder measured."""
        measured: dict[str, Any] = open_artifact(self.root / folder / "adapter").content["run"]
        return measured

    def stage(self, stage: str, *arguments: object, log: str = "", place: Gpu | int = 1, **sections: Settings) -> None:
        """Run a stage's script in `root`: in a process of a GPU, or as so many ranks, which see every GPU.

        Raises CoraxError with the end of its log if it fails.
        """
        options = [option for section, values in sections.items() for option in cli.options(values, section)]
        command = [str(SCRIPTS / f"{stage}.py"), *map(str, arguments), *options]
        path = (self.root / "logs" / f"{stage}{log}.log").resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(place, Gpu):
            code = place.run(command, path)
        else:
            launcher = [] if place == 1 else [str(SCRIPTS / "launch.py"), "--ranks", str(place)]
            with path.open("w") as file:
                started = [sys.executable, *launcher, *command]
                code = subprocess.run(started, cwd=self.root, stdout=file, stderr=subprocess.STDOUT).returncode
        if code:
            last = (path.read_text().strip().splitlines() if path.exists() else []) or ["see imports.log"]
            raise CoraxError(f"{path}: {stage} ended with {code}: {last[-1]}")

    def _model(self, name: str) -> Path:
        return Path("results/models", self.configuration.runs[name].model)

    def _shards(self, dataset: str) -> list[str]:
        return [f"{number:03}" for number in range(self.configuration.datasets[dataset].shards)]

    def _tokens(self, name: str) -> list[Path]:
        run = self.configuration.runs[name]
        folder = Path("results/datasets", run.dataset, "tokens", run.model)
        return [folder / shard for shard in self._shards(run.dataset)]

    def _download_model(self, model: str) -> None:
        source = command_line(self.configuration.models[model])
        output = ("--kind", "model", "--output", Path("results/models", model))
        self.stage("download", *source, *output, log=f"-{model}")

    def _make_text(self, name: str, shard: str) -> None:
        """generate or download, then detokenize."""
        dataset = self.configuration.datasets[name]
        raw, text = (Path("results/datasets", name, kind, shard) for kind in ("raw", "text"))
        log = f"-{name}-{shard}"
        if dataset.generate is not None:
            numbers = ("--shard", int(shard), "--shards", dataset.shards)
            self.stage("generate", *numbers, "--output", raw, log=log, generate=dataset.generate)
        elif dataset.download is not None:
            source = command_line(dataset.download, int(shard))
            self.stage("download", *source, "--kind", "data", "--output", raw, log=log)
        self.stage("detokenize", "--raw", raw, "--output", text, log=log, detokenize=dataset.detokenize)

    def _make_tokens(self, name: str, model: str, shard: str) -> None:
        text = Path("results/datasets", name, "text", shard)
        output = Path("results/datasets", name, "tokens", model, shard)
        inputs = ("--text", text, "--model", Path("results/models", model), "--output", output)
        settings = self.configuration.datasets[name].pretokenize
        self.stage("pretokenize", *inputs, log=f"-{name}-{shard}", pretokenize=settings)


def side_by_side(jobs: Iterable[str], devices: Sequence[Gpu], work: Callable[[str, Gpu], None]) -> None:
    """Do `work(job, gpu)` for each job, in their order, with `gpu.runs` of them on each device at a time.

    A job that fails does not end the others; its error is printed.
    """
    waiting = queue.SimpleQueue[str]()
    for job in jobs:
        waiting.put(job)

    def take(device: Gpu) -> None:
        while True:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                work(job, device)
            except CoraxError as error:
                print(f"error: {job}: {error}", flush=True)

    threads = [threading.Thread(target=take, args=(device,)) for device in devices for _ in range(device.runs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
