"""JSON lines as samples: the pieces of text that the template joins, whatever the kind of sample."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter, ne
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from corax.artifact import open_artifact
from corax.errors import CoraxError
from corax.pretokenize.lines import read_lines
from corax.template import KINDS, ROLES, Kind, Template

ALLOWED: dict[Kind, str] = {
    "completion": '{"prompt": …, "completion": …}',
    "messages": '{"messages": [{"role": …, "content": …}, …]}',
    "text": '{"text": …}',
}
TEXTS = {"completion": {"prompt": False, "completion": True}, "text": {"text": True}}
"""The texts of a line, and whether each is learnt, so that it must not be empty."""

_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Samples:
    """Lines of a file, each a sample; sample i has the pieces `offsets[i]` to `offsets[i + 1]`.

    `texts` are the pieces' texts, `parts` their numbers in `Template.parts`; `line` is the number of the first line,
    `size` the bytes of all.
    """

    path: Path
    line: int
    size: int
    texts: list[str]
    parts: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def where(self, sample: int) -> str:
        """File and line of a sample, for an error."""
        return f"{self.path}: line {self.line + sample}"


def kind_of(text: Path) -> Kind:
    """The kind of the samples in a text artifact; raises CoraxError for one that does not exist."""
    kind: Kind = open_artifact(text).facts.get("kind", "completion")
    if kind not in KINDS:
        raise CoraxError(f"{text}: its samples are of the kind {kind!r}, allowed: {', '.join(KINDS)}")
    return kind


def read_samples(path: Path, template: Template) -> Iterator[tuple[Samples, pa.StringArray]]:
    """The samples of a file, some thousand at a time, and their texts once more as Arrow's array.

    Raises CoraxError naming the first bad line.
    """
    is_target = np.array([part.target for part in template.parts])
    pieces = _PIECES[template.kind]
    for number, content in read_lines(path):
        size = len(content) + 1  # with the last newline
        try:
            samples = Samples(path, number, size, *pieces(_parse(content)))
            texts = pa.array(samples.texts, pa.string())
            targets = is_target[samples.parts]
            empty = np.asarray(pc.equal(pc.binary_length(texts), 0)) & targets
            if texts.null_count or empty.any() or not np.add.reduceat(targets, samples.offsets[:-1], dtype=int).all():
                raise ValueError
        except (ValueError, TypeError, KeyError, IndexError, RecursionError, pa.ArrowException):
            # A line is bad, or only written in an unusual way: look at each.
            lines = enumerate(content.split(b"\n"), start=number)
            rows = [check_line(line, template.kind, f"{path}: line {index}") for index, line in lines]
            samples = Samples(path, number, size, *pieces(rows))
            texts = pa.array(samples.texts, pa.string())
        yield samples, texts


# Every loop over lines from here to _PIECES is one of C: `map`, `chain`, `fromiter`.


def _parse(content: bytes) -> list[Any]:
    """The JSON values of lines without white space around them; raises ValueError for others."""
    lines = content.decode("utf-8").split("\n")
    found = [*map(_DECODER.raw_decode, lines)]  # (value, where it ends): faster than `loads`, which skips white space
    if any(map(ne, map(itemgetter(1), found), map(len, lines))):
        raise ValueError
    return [*map(itemgetter(0), found)]


def _completions(rows: list[Any]) -> tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    texts = [*chain.from_iterable(map(itemgetter("prompt", "completion"), rows))]
    return texts, np.arange(len(texts)) % 2, np.arange(0, len(texts) + 1, 2)


def _texts(rows: list[Any]) -> tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    return [*map(itemgetter("text"), rows)], np.zeros(len(rows), np.int64), np.arange(len(rows) + 1)


def _messages(rows: list[Any]) -> tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    conversations = [*map(itemgetter("messages"), rows)]
    messages = [*chain.from_iterable(conversations)]
    offsets = np.concatenate([[0], np.cumsum(np.fromiter(map(len, conversations), np.int64, len(rows)))])
    roles = np.fromiter(map(ROLES.index, map(itemgetter("role"), messages)), np.int64, len(messages))
    later = np.ones(len(messages), np.int64)
    later[offsets[:-1]] = 0
    return [*map(itemgetter("content"), messages)], roles + len(ROLES) * later, offsets


_PIECES = {"completion": _completions, "messages": _messages, "text": _texts}


def check_line(line: bytes, kind: Kind, where: str) -> Any:
    """The line's object; raises CoraxError if it is no sample of this kind. `where` names file and line."""
    try:
        sample = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise CoraxError(f"{where}: no valid UTF-8 at byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise CoraxError(f"{where}: no valid JSON: {error}") from None
    if not isinstance(sample, dict):
        raise CoraxError(f"{where}: allowed is an object {ALLOWED[kind]}")
    if kind == "messages":
        _check_messages(_value(sample, "messages", list, where), where)
    else:
        for key, is_target in TEXTS[kind].items():
            _check_text(sample, key, is_target, where)
    return sample


def _check_messages(messages: list[Any], where: str) -> None:
    for number, message in enumerate(messages):
        place = f"{where}: message {number + 1}"
        if not isinstance(message, dict):
            raise CoraxError(f"{place}: allowed is an object with role and content")
        role = _value(message, "role", str, place)
        if role not in ROLES:
            raise CoraxError(f"{place}: role is {role!r}, allowed: {', '.join(ROLES)}")
        _check_text(message, "content", role == "assistant", place)
    if not any(message["role"] == "assistant" for message in messages):
        raise CoraxError(f"{where}: no message of the assistant, so there is nothing to learn")


def _check_text(sample: dict[str, Any], key: str, is_target: bool, where: str) -> None:
    value = _value(sample, key, str, where)
    if is_target and not value:
        raise CoraxError(f"{where}: {key} is empty, so there is nothing to learn")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise CoraxError(f"{where}: {key} has a lone surrogate at character {error.start}") from None


def _value(sample: dict[str, Any], key: str, kind: type, where: str) -> Any:
    if key not in sample:
        raise CoraxError(f"{where}: {key} is missing, found: {', '.join(sample) or 'nothing'}")
    if not isinstance(sample[key], kind):
        allowed = "a string" if kind is str else "a list"
        raise CoraxError(f"{where}: {key} is of type {type(sample[key]).__name__}, allowed: {allowed}")
    return sample[key]
