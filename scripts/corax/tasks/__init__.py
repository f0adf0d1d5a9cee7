"""Tasks: what a kind of data means, behind one small interface.

A task is a folder here with a module `task` that has `TASK`, and a `vocabulary.json` {token: id} if its data are token
ids; nothing else needs to know it. Importing a task is cheap: heavy libraries are imported when a method needs them.
"""

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from corax.errors import CoraxError
from corax.grammar import Grammar


class Target(NamedTuple):
    """Something to write a completion for, beyond the data's own prompts."""

    name: str
    """Key, unique in its task."""
    label: str
    """What a plot or table calls it."""
    prompt: str
    """Prompt text, as in the data."""


class Task(Protocol):
    """What the stages ask of a task."""

    name: str

    def targets(self) -> list[Target]:
        """The targets, in the order of tables; may be empty."""

    def score(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The `task` block of evaluation.json from the rows of samples.parquet (docs/artifacts.md)."""


@runtime_checkable
class TaskWithGrammar(Task, Protocol):
    """A task whose completions are a formal language."""

    def grammar(self) -> Grammar:
        """The completions that `score` can read: `sample` may be told to draw no others."""


def names() -> list[str]:
    """The tasks there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)


def get(name: str) -> Task:
    """The task called `name`; raises CoraxError that lists the allowed names."""
    if name not in names():
        raise CoraxError(f"task {name!r} does not exist, allowed: {', '.join(names())}")
    task: Task = importlib.import_module(f"{__name__}.{name}.task").TASK
    return task
