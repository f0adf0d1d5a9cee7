"""Disk space, quota, TMPDIR and binds."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from corax.config import Config
from corax.errors import is_disk_full
from corax.merge.memory import weight_sizes
from corax.plan.devices import GB
from corax.settings.download import LocalSource

FLOOR = 2 * GB
"""Free space to have besides the models: token files, checkpoints, logs."""
PROBE = 16 * 2**20
"""Bytes that are written to find a full quota, which free space does not show."""
BINDS = "APPTAINER_BIND"


def problems(config: Config, folder: Path) -> Iterator[str]:
    """Space for what the runs still have to write into `folder`, and a TMPDIR that can be written."""
    free, needed = shutil.disk_usage(folder).free, _needed(config, folder)
    if free < needed:
        yield f"{folder}: {free / GB:.1f} GB free, about {needed / GB:.1f} GB needed for models and checkpoints"
    for place in (folder, Path(os.environ.get("TMPDIR", "/tmp"))):  # noqa: S108 - the system's default
        problem = _write_problem(place)
        if problem:
            yield f"{place}: {problem}"


def bind_problems() -> Iterator[str]:
    """Folders that this user has bound into all containers, but that do not exist."""
    for entry in filter(None, os.environ.get(BINDS, "").split(",")):
        path = Path(entry.split(":")[0])
        if not path.exists():
            yield f"{path}: to be bound by {BINDS}, but it does not exist"


def _needed(config: Config, folder: Path) -> int:
    """Bytes of the models still to be copied and merged, as far as their size is known, and the floor."""
    total = FLOOR
    for name, source in config.models.items():
        present = folder / "results" / "models" / name
        runs = [run for run, each in config.runs.items() if each.model == name]
        merges = sum(not (folder / "results" / "runs" / run / "merged").exists() for run in runs)
        if present.exists():
            total += merges * sum(weight_sizes(present))
        elif isinstance(source, LocalSource):
            total += (1 + merges) * sum(weight_sizes(Path(source.path)))
    return total


def _write_problem(folder: Path) -> str | None:
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".corax-check-") as file:
            file.write(bytes(PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return "the disk or your quota is full" if is_disk_full(error) else f"cannot be written: {error.strerror}"
    return None
