"""The documents of a task: the rows of its data files."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from corax.errors import CoraxError
from corax.harness.task_file import LocalTask


def rows(task: LocalTask, split: str) -> list[dict[str, Any]]:
    """The documents of a split; raises CoraxError naming file and row for what is no table of values."""
    path = task.data[split]
    found = _parquet(path) if task.content.dataset_path == "parquet" else _json(path)
    if not found:
        raise CoraxError(f"{path}: no rows")
    return found


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise CoraxError(f"{path}: no Parquet file: {str(error).splitlines()[0]}") from None
    return rows


def _json(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON list, or of JSON lines."""
    try:
        text = path.read_text("utf-8")
        listed = text.lstrip().startswith("[")
        rows = json.loads(text) if listed else [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise CoraxError(f"{path}: neither a list nor lines of JSON objects: {error}") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise CoraxError(f"{path}: row {number} is {type(row).__name__}, allowed: an object")
    return list(rows)
