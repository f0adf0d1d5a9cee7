"""Checkpoints: folders renamed into place with hashes; the newest that verifies is used."""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from corax.artifact import Artifact, damage, read_manifest
from corax.train import tensors
from corax.train.tensors import ALL, Share

log = logging.getLogger("corax")

BEST = "best.safetensors"
CONSTANTS = {"qmap1", "qmap2"}
"""bitsandbytes' maps from 8 bits to numbers: the same for all parameters, at all times."""


@dataclass(frozen=True)
class Checkpoint:
    """What training needs to go on: steps done, adapter and optimizer tensors, metrics so far.

    `best` is the adapter with the lowest validation loss so far, where it is wanted and there is one.
    """

    step: int
    adapter: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, torch.Tensor]
    metrics: list[dict[str, Any]]
    best: Mapping[str, torch.Tensor] | None = None

    def gather(self) -> None:
        """What a rank must do while another one saves tensors that are divided over the ranks."""
        for content in (self.adapter, self.optimizer, self.best or {}):
            for _ in tensors.gather(content):
                pass


def record_segment(folder: Path) -> list[str | None]:
    """Note that training starts or goes on, and remove what killed writers left.

    The Slurm job of each segment so far (None: no Slurm), this one last.
    """
    path = folder / "segments.txt"
    folder.mkdir(parents=True, exist_ok=True)
    for unfinished in folder.glob(".step-*"):
        shutil.rmtree(unfinished)
    with path.open("ab") as file:
        file.write(os.environ.get("SLURM_JOB_ID", "-").encode() + b"\n")
    jobs = path.read_text(errors="replace").splitlines()
    return [None if job == "-" else job for job in jobs]


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Write `checkpoint` into `folder` and keep the newest `keep`; those of a later step, damaged ones, go too."""
    path = _path(folder, checkpoint.step)
    with Artifact(path, stage="checkpoint") as artifact:
        tensors.write(artifact.path / "adapter.safetensors", checkpoint.adapter)
        tensors.write(artifact.path / "optimizer.safetensors", checkpoint.optimizer)
        (artifact.path / "metrics.jsonl").write_text(metric_lines(checkpoint.metrics))
        if checkpoint.best is not None:
            tensors.write(artifact.path / BEST, checkpoint.best)
        artifact.note(step=checkpoint.step)
    found = _newest_first(folder)
    kept = found[found.index(path) :][:keep]
    for other in found:
        if other not in kept:
            shutil.rmtree(other)


def load(folder: Path, share: Share = ALL) -> Checkpoint | None:
    """The newest checkpoint in `folder` that verifies, None if there is none; damaged ones are named.

    Of its tensors the rows that belong to `share`.
    """
    for candidate in _newest_first(folder):
        problem = damage(candidate)
        if problem:
            log.warning("%s: damaged checkpoint, not used", problem)
            continue
        lines = (candidate / "metrics.jsonl").read_text().splitlines()
        best = candidate / BEST
        return Checkpoint(
            step=read_manifest(candidate / "manifest.json").facts["step"],
            adapter=tensors.read(candidate / "adapter.safetensors", share),
            optimizer=tensors.read(candidate / "optimizer.safetensors", share),
            metrics=[json.loads(line) for line in lines],
            best=tensors.read(best, share) if best.exists() else None,
        )
    return None


def metric_lines(metrics: list[dict[str, Any]]) -> str:
    """Metrics as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in metrics)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state as named tensors, `<parameter number>.<key>`; without constants."""
    return {
        f"{number}.{key}": torch.as_tensor(value)
        for number, (_, parameter) in enumerate(_parameters(optimizer))
        for key, value in optimizer.state[parameter].items()
        if key not in CONSTANTS
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, torch.Tensor]) -> None:
    """The inverse of `optimizer_tensors`; of divided tensors `saved` has this rank's rows."""
    parameters = [parameter for _, parameter in _parameters(optimizer)]
    state: dict[int, dict[str, Any]] = {}
    for name, value in saved.items():
        number, key = name.split(".", 1)
        # As the parameter is divided, so are its moments; the count of steps has no rows.
        like = parameters[int(number)] if value.dim() else value
        state.setdefault(int(number), {})[key] = tensors.divided(value, like)
    if not hasattr(optimizer, "init_state"):
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        return
    # bitsandbytes: its own load_state_dict would move paged memory to the GPU for good.
    for place, ((group, index), parameter) in enumerate(_parameters(optimizer)):
        optimizer.init_state(optimizer.param_groups[group], parameter, group, index)
        made = optimizer.state[parameter]
        made["step"] = int(state[place].pop("step"))
        for key, value in state[place].items():
            made[key].copy_(value)


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[tuple[tuple[int, int], torch.nn.Parameter]]:
    """Each parameter with the number of its group and its number there."""
    for group, content in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(content["params"]):
            yield (group, index), parameter


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:07d}"


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)
