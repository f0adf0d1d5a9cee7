"""What `sample` asks the tuned model: the task's targets and prompts of the test part."""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from corax.errors import CoraxError
from corax.pretokenize.samples import check_line, kind_of
from corax.settings.sample import SampleSettings
from corax.tasks import Task

BEGINNING = 1000
"""Most characters of a plain text that are given, and that are compared with what the model writes."""


class Prompt(NamedTuple):
    """One sample to draw; `text` is what `Template.prompt_ids` takes, `reference` the answer in the data or None."""

    kind: str
    name: str
    text: str
    reference: str | None


def collect(
    task: Task, text: Sequence[Path], settings: SampleSettings, fits: Callable[[str], bool] = lambda prompt: True
) -> list[Prompt]:
    """Each target `samples_per_target` times, then the first `held_out_prompts` of the test parts in `text`.

    Held-out prompts that are too long, as `fits` says, are passed over. Raises CoraxError if
    nothing at all is left or a line of a test part is damaged.
    """
    targets = task.targets() if settings.targets else []
    repeated = [target for target in targets for _ in range(settings.samples_per_target)]
    rows = (prompt for prompt in chain.from_iterable(map(read_test, text)) if fits(prompt.text))
    held_out = islice(rows, settings.held_out_prompts)
    prompts = [Prompt("target", target.name, target.prompt, None) for target in repeated] + list(held_out)
    if not prompts and settings.held_out_prompts:
        raise CoraxError(
            f"{text[0] / 'test.jsonl'}: nothing to sample, this and all other test parts have no prompt "
            f"within plan.max_length that leaves sample.max_new_tokens, {settings.max_new_tokens}, of the context"
        )
    if not prompts:
        raise CoraxError("nothing to sample: sample.targets or sample.held_out_prompts must ask for something")
    return prompts


def read_test(shard: Path) -> Iterator[Prompt]:
    """The rows of the test part of a text shard, named `<shard>:<row>`.

    A conversation asks for the assistant's last turn: its prompt is the JSON list of the messages before. A plain text
    asks for what follows its beginning, whole lines if it has any; one of a single character asks nothing.
    """
    path, kind = shard / "test.jsonl", kind_of(shard)
    with path.open("rb") as file:
        for number, line in enumerate(file):
            row = check_line(line, kind, f"{path}: line {number + 1}")
            if kind == "completion":
                prompt, reference = row["prompt"], row["completion"]
            elif kind == "text":
                prompt, reference = _halves(row["text"])
            else:
                messages = row["messages"]
                last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
                prompt, reference = json.dumps(messages[:last], ensure_ascii=False), messages[last]["content"]
            if prompt or kind != "text":
                yield Prompt("held-out", f"{shard.name}:{number}", prompt, reference)


def _halves(text: str) -> tuple[str, str]:
    """The beginning of a text, at most half of it, and what follows: at most BEGINNING characters of each."""
    middle = min(len(text) // 2, BEGINNING)
    middle = text.rfind("\n", 0, middle) + 1 or middle
    return text[:middle], text[middle : middle + BEGINNING]
