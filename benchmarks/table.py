"""The result of a benchmark: a table on the terminal and benchmarks/results/<name>.json.

from table import Row, write

write("data", [Row("detokenize", 412.0, "times", "row by row, same run", at_least=300)])
"""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"
PACKAGES = (
    "bitsandbytes",
    "fastokens",
    "h5py",
    "numba",
    "numpy",
    "peft",
    "pyarrow",
    "tiktoken",
    "tokenizers",
    "torch",
    "transformers",
    "triton",
    "unsloth",
)
"""Packages whose versions are recorded where they are installed."""


@dataclass(frozen=True)
class Row:
    """One figure: `against` says what it was compared with, `at_least` or `at_most` is the goal."""

    name: str
    value: float
    unit: str
    against: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def goal(self) -> str:
        """The goal in words; empty without one."""
        if self.at_least is not None:
            return f"at least {self.at_least:g}"
        return "" if self.at_most is None else f"at most {self.at_most:g}"

    @property
    def holds(self) -> bool | None:
        """Whether the value meets its goal; None without one."""
        if self.at_least is not None:
            return self.value >= self.at_least
        return None if self.at_most is None else self.value <= self.at_most

    def content(self) -> dict[str, Any]:
        """The row as JSON, the value with four digits."""
        value = float(f"{self.value:.4g}") if abs(self.value) < 1000 else round(self.value)
        keys = {"name": self.name, "value": value, "unit": self.unit, "against": self.against}
        return {**keys, "goal": self.goal, "holds": self.holds}


def write(name: str, rows: Sequence[Row], folder: Path = FOLDER, show: bool = True) -> None:
    """Print the rows, and write them with machine, versions and commit to <folder>/<name>.json."""
    contents = [row.content() for row in rows]
    if show:
        print(_table(contents))
    versions = {package: version for package in PACKAGES if (version := _version(package))}
    result = {
        "machine": f"{_processor()}, {os.cpu_count()} CPUs, {_gpu() or 'no GPU'}",
        "versions": {"python": platform.python_version(), **versions},
        "commit": _commit(),
        "rows": contents,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def _table(contents: list[dict[str, Any]]) -> str:
    verdict = {True: "yes", False: "NO", None: ""}
    cells = [["name", "value", "unit", "against", "goal", "holds"]]
    for row in contents:
        value = f"{row['value']:,}"
        cells.append([row["name"], value, row["unit"], row["against"], row["goal"], verdict[row["holds"]]])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for line in cells:
        padded = [
            cell.rjust(width) if n == 1 else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpu() -> str:
    try:
        import torch
    except ImportError:
        return ""
    count = torch.cuda.device_count()
    return f"{count} × {torch.cuda.get_device_name(0)}" if count else ""


def _commit() -> str:
    """The commit, marked where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:  # a machine without git
        return "unknown"
    return done.stdout.strip() or "unknown"
