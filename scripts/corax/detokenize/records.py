"""Kinds of record: from the columns of a row to the sample that `detokenize` writes, strictly."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from corax.detokenize.columns import missing
from corax.detokenize.errors import BadRowError

Row = Mapping[str, Any]
Columns = Mapping[str, str]
"""Setting's key, such as `prompt_column`, to the column's name in the file."""

ALPACA = (
    "Below is an instruction that describes a task{with_context}. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n{context}### Response:"
)
"""The prompt of Stanford Alpaca (train.py); the response follows at once."""
DOLLY = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n{context}### Response:\n"
)
"""The prompt of Databricks Dolly (consts.py)."""
ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
SHAREGPT_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
ROLE_KEYS = {"messages": "role", "sharegpt": "from"}
NEXT = {
    "the beginning": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
}


class Sample(NamedTuple):
    """One line of a text artifact, and the part of it that decides, with others alike, where it belongs."""

    content: dict[str, Any]
    key: Any


class Record(NamedTuple):
    """How rows become samples; `kind` (completion, messages or text) says which keys a sample has."""

    kind: str
    sample: Callable[[Row, Columns], Sample]


def _completion(row: Row, columns: Columns) -> Sample:
    return _pair(text(row, columns["prompt_column"]), row, columns)


def _alpaca(row: Row, columns: Columns) -> Sample:
    instruction, context = _instruction(row, columns)
    given = {
        "with_context": ", paired with an input that provides further context" if context else "",
        "context": f"### Input:\n{context}\n\n" if context else "",
    }
    return _pair(ALPACA.format(instruction=instruction, **given), row, columns)


def _dolly(row: Row, columns: Columns) -> Sample:
    instruction, context = _instruction(row, columns)
    context = f"Input:\n{context}\n\n" if context else ""
    return _pair(DOLLY.format(instruction=instruction, context=context), row, columns)


def _instruction(row: Row, columns: Columns) -> tuple[str, str]:
    return filled(row, columns["prompt_column"]), text(row, columns["context_column"])


def _pair(prompt: str, row: Row, columns: Columns) -> Sample:
    return Sample({"prompt": prompt, "completion": filled(row, columns["completion_column"])}, prompt)


def _text(row: Row, columns: Columns) -> Sample:
    content = filled(row, columns["text_column"])
    return Sample({"text": content}, content)


def _messages(row: Row, columns: Columns) -> Sample:
    return _conversation(row, columns["messages_column"], "role", "content", ROLES)


def _sharegpt(row: Row, columns: Columns) -> Sample:
    return _conversation(row, columns["messages_column"], "from", "value", SHAREGPT_ROLES)


def _conversation(row: Row, column: str, role_key: str, content_key: str, roles: Mapping[str, str]) -> Sample:
    """Perhaps a system message, then user and assistant in turn; conversations that begin alike belong together."""
    turns = value(row, column)
    if not isinstance(turns, list):
        raise BadRowError(column, f"is of type {type(turns).__name__}, allowed: a list of messages")
    messages: list[dict[str, str]] = []
    for number, turn in enumerate(turns):
        where = f"{column}[{number}]"
        if not isinstance(turn, dict):
            raise BadRowError(where, f"is of type {type(turn).__name__}, allowed: {role_key} and {content_key}")
        other = next((record for record, key in ROLE_KEYS.items() if key in turn), None)
        if role_key not in turn and other:
            raise BadRowError(
                where,
                f"has no {role_key}, found: {', '.join(map(str, turn))[:200]}; "
                f"for these detokenize.record is {other} and messages_column {column}",
            )
        given = text(turn, role_key, f"{where}.")
        if given not in roles:
            raise BadRowError(f"{where}.{role_key}", f"is {given[:40]!r}, allowed: {', '.join(roles)}")
        role, before = roles[given], messages[-1]["role"] if messages else "the beginning"
        if role not in NEXT[before]:
            raise BadRowError(f"{where}.{role_key}", f"is {given} after {before}, allowed: {' or '.join(NEXT[before])}")
        read = filled if role == "assistant" else text
        messages.append({"role": role, "content": read(turn, content_key, f"{where}.")})
    if not any(message["role"] == "assistant" for message in messages):
        raise BadRowError(column, "has no assistant turn")
    if messages[-1]["role"] != "assistant":
        raise BadRowError(column, "does not end with an assistant turn")
    first = next(number for number, message in enumerate(messages) if message["role"] == "assistant")
    return Sample({"messages": messages}, messages[:first])


RECORDS = {
    "completion": Record("completion", _completion),
    "alpaca": Record("completion", _alpaca),
    "dolly": Record("completion", _dolly),
    "messages": Record("messages", _messages),
    "sharegpt": Record("messages", _sharegpt),
    "text": Record("text", _text),
}


def value(row: Row, column: str, where: str = "") -> Any:
    """What a row has in a column; `where` is put before the column's name in errors."""
    if column not in row:
        raise BadRowError(where + column, missing(column, row))
    if row[column] is None:
        raise BadRowError(where + column, "is null")
    return row[column]


def text(row: Row, column: str, where: str = "") -> str:
    """The text in a column; Arrow's comes as bytes."""
    found = value(row, column, where)
    try:
        if isinstance(found, bytes):
            return found.decode()
        if isinstance(found, str):
            found.encode()
            return found
    except UnicodeDecodeError as error:
        raise BadRowError(where + column, f"is no valid UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError as error:
        raise BadRowError(where + column, f"is no valid UTF-8 at character {error.start}") from None
    raise BadRowError(where + column, f"is of type {type(found).__name__}, allowed: a text")


def filled(row: Row, column: str, where: str = "") -> str:
    """A text that is not empty."""
    found = text(row, column, where)
    if not found:
        raise BadRowError(where + column, "is empty")
    return found


def division_key(row: Row, column: str) -> str | int:
    """The text or whole number by which rows are divided into parts."""
    found = value(row, column)
    return found if type(found) is int else text(row, column)


def class_name(row: Row, column: str, names: Sequence[str]) -> str:
    """The name of the class whose number, from 0, a column has; CSV's is a text."""
    found = value(row, column)
    number = found if type(found) is int else text(row, column)
    try:
        return {key: name for place, name in enumerate(names) for key in (place, str(place))}[number]
    except KeyError:
        allowed = f"0 to {len(names) - 1}, the numbers of the labels"
        raise BadRowError(column, f"is {number!r:.80}, allowed: {allowed}") from None
