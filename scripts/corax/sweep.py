"""A run with a `sweep` stands for several runs: one for each combination of the values in its grid."""

import itertools
import re
from collections.abc import Mapping
from typing import Any

from corax.errors import CoraxError
from corax.settings.base import to_number

SHORT = {"learning_rate": "lr", "num_train_epochs": "epochs", "packs_per_step": "batch"}
"""What the usual keys of a grid are called in the names of runs."""


def expand(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The runs by name, those with a `sweep` replaced by one run for each combination, in the order of the grid.

    A key of a grid is `model`, `dataset` or `section.key`; a value replaces what the run says. The names are
    `<run>-<key><value>-…`, such as `chat-r16-lr2e-4`. Raises CoraxError for a key that is no such path, a value that
    the grid has twice, or a name that is taken.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, run in runs.items():
        for each, settings in _of_grid(name, run).items():
            if each in found:
                raise CoraxError(f"runs.{name}.sweep: two runs would be called {each!r}")
            found[each] = settings
    return found


def _of_grid(name: str, run: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    grid = run.get("sweep") or {}
    plain = {key: value for key, value in run.items() if key != "sweep"}
    names = [[_name(key, value) for value in values] for key, values in grid.items()]
    for key, each in zip(grid, names, strict=True):
        if len(set(each)) < len(each):
            raise CoraxError(f"runs.{name}.sweep.{key}: a value is given twice, found {', '.join(each)}")
    result = {}
    for parts, values in zip(itertools.product(*names), itertools.product(*grid.values()), strict=True):
        settings = plain
        for key, value in zip(grid, values, strict=True):
            settings = _with(settings, key, value, f"runs.{name}.sweep.{key}")
        result["-".join([name, *parts])] = settings
    return result


def _with(run: dict[str, Any], path: str, value: Any, where: str) -> dict[str, Any]:
    """The run with one value changed; it is not modified itself."""
    section, _, key = path.rpartition(".")
    if not section and key in ("model", "dataset"):
        return {**run, key: value}
    if not section or "." in section or section in ("model", "dataset"):
        raise CoraxError(f"{where}: allowed: model, dataset, or a section and its key, such as lora.r")
    return {**run, section: {**(run.get(section) or {}), key: value}}


def _name(path: str, value: Any) -> str:
    """A value in the name of a run: r16, lr2e-4, use_dora-true, or only the model's name."""
    key = path.rpartition(".")[2]
    number = to_number(value)
    if isinstance(number, int | float) and not isinstance(number, bool):
        return SHORT.get(key, key) + _number(number)
    text = re.sub(r"[^a-z0-9._-]", "-", str(value).lower())
    return text if path in ("model", "dataset") else f"{SHORT.get(key, key)}-{text}"


def _number(value: float) -> str:
    """2e-4 for 0.0002, as learning rates are written; 0.05, 3 and 1.5 as they are."""
    text = f"{value:.14e}" if 0 < abs(value) < 0.01 else f"{value:.15g}"
    mantissa, _, exponent = text.partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}" if exponent else text
