"""Curves for TensorBoard while training: the rows of metrics.jsonl as event files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

TAGS = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "validation_loss": "eval/loss",
}
"""TensorBoard's names of our metrics: those of transformers' Trainer."""
SECONDS_BETWEEN_WRITES = 10


class Curves:
    """Context manager that writes event files into `folder`; without one it does nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._writer: Any = None

    def start(self, step: int) -> None:
        """Training goes on after `step`: what earlier files say of later steps is forgotten."""
        if self.folder is not None:
            from torch.utils.tensorboard.writer import SummaryWriter  # two seconds of import, seldom needed

            self._writer = SummaryWriter(self.folder, purge_step=step + 1, flush_secs=SECONDS_BETWEEN_WRITES)

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row of metrics."""
        if self._writer is not None:
            for key, tag in TAGS.items():
                if key in row:
                    self._writer.add_scalar(tag, row[key], row["step"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writer is not None:
            self._writer.close()
