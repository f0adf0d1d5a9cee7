"""Malformed input of every format: exit code 2, one line that names the file and the row or key, nothing written.

A bad row among good ones can also be counted and reported instead: `BAD_ROWS` are tried both ways.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stages

from corax import cli
from corax.artifact import Artifact, open_artifact

Content = bytes | Callable[[Path], None]
Case = tuple[str, Content, Sequence[str], str]
"""Name of the file, what is in it, options, and what the error line says of it."""

WORDS = {"<PAD>": 0, "<SOS>": 1, "<EOS>": 2, "a": 3, "b": 4}


def ids(*rows: list[int], dtype: str = "int8", width: int = 6, **columns: Any) -> Callable[[Path], None]:
    """An HDF5 file with the given rows in both columns, padded right; `columns` replaces or adds some."""

    def write(path: Path) -> None:
        table = np.array([row + [0] * (width - len(row)) for row in rows], dtype)
        with h5py.File(path, "w") as file:
            for name, values in {"state": table, "code": table, **columns}.items():
                file[name] = values

    return write


def ragged(*rows: list[int]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            for name in ("state", "code"):
                column = file.create_dataset(name, (len(rows),), h5py.vlen_dtype(np.int16))
                for place, row in enumerate(rows):
                    column[place] = row

    return write


def unwritten(path: Path) -> None:
    """A small file that claims a million million rows."""
    with h5py.File(path, "w") as file:
        for name in ("state", "code"):
            file.create_dataset(name, (10**12, 6), "int8", chunks=(1024, 6))


def parquet(cut: int | None = None, **columns: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        pq.write_table(pa.table(columns), path)
        path.write_bytes(path.read_bytes()[:cut])

    return write


def arrow(cut: int | None = None, stream: bool = True, **columns: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        table = pa.table(columns)
        with (pa.ipc.new_stream if stream else pa.ipc.new_file)(path, table.schema) as writer:
            writer.write_table(table)
        path.write_bytes(path.read_bytes()[:cut])

    return write


def arrow_with_offset(path: Path) -> None:
    """A stream in which the first text ends behind the end of all texts."""
    arrow(text=["first text", "second text"])(path)
    content = path.read_bytes()
    offsets = np.array([0, 10, 21], np.int32).tobytes()
    assert content.count(offsets) == 1
    path.write_bytes(content.replace(offsets, np.array([0, 10_000_000, 21], np.int32).tobytes()))


def jsonl(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def array(*rows: Any) -> bytes:
    return json.dumps(rows).encode()


def not_utf8(*texts: bytes) -> pa.Array:
    return pa.array(texts, pa.binary()).view(pa.string())


def twice(**columns: Any) -> pa.Table:
    table = pa.table(columns)
    return table.append_column(table.schema.names[0], table.column(0))


def parquet_of(table: pa.Table) -> Callable[[Path], None]:
    return lambda path: pq.write_table(table, path)


def option(**keys: object) -> list[str]:
    return [f"--detokenize.{key}={value}" for key, value in keys.items()]


TEXT, MESSAGES = option(record="text"), option(record="messages")
GOOD = {"prompt": "p", "completion": "c"}
CHAT = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
CONVERSATION = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
MIB = 2**20

BAD_FILES: dict[str, Case] = {
    # HDF5
    "hdf5: no bytes": ("a.h5", b"", [], "no complete HDF5 file"),
    "hdf5: text": ("a.h5", b"1,2,3\n", [], "no complete HDF5 file"),
    "hdf5: signature only": ("a.h5", b"\x89HDF\r\n\x1a\n", [], "no complete HDF5 file"),
    "hdf5: no data set": (
        "a.h5",
        ids(state=[[1]]),
        option(prompt_column="s"),
        "column s is missing, found: code, state",
    ),
    "hdf5: real numbers": ("a.h5", ids([1, 3, 2], code=np.ones((1, 6))), [], "column code has type float64"),
    "hdf5: truth values": ("a.h5", ids([1, 3, 2], code=np.ones((1, 6), bool)), [], "column code has type bool"),
    "hdf5: texts": ("a.h5", ids([1, 3, 2], state=["a"]), [], "column state has type object, allowed: integers"),
    "hdf5: three dimensions": ("a.h5", ids([1, 3, 2], state=np.ones((1, 6, 2), "int8")), [], "shape (1, 6, 2)"),
    "hdf5: different rows": ("a.h5", ids([1, 3, 2], code=np.ones((2, 6), "int8")), [], "state has 1 rows, code has 2"),
    "hdf5: too wide": ("a.h5", ids([1, 3, 2], width=MIB + 1), [], "1048577 ids a row, allowed: at most 1048576"),
    "hdf5: no rows": ("a.h5", ids(width=3, state=np.ones((0, 3), "int8"), code=np.ones((0, 3), "int8")), [], "no rows"),
    "hdf5: rows without data": (
        "a.h5",
        unwritten,
        [],
        "column state has shape (1000000000000, 6), more than this file",
    ),
    "hdf5: records of text": ("a.h5", ids([1, 3, 2]), TEXT, "detokenize.record is text: allowed with HDF5"),
    "hdf5: divided by a column": ("a.h5", ids([1, 3, 2]), option(split_column="x"), "detokenize.split_column is x"),
    # JSON lines
    "jsonl: no bytes": ("a.jsonl", b"", [], "the dataset is empty"),
    "jsonl: a byte order mark only": ("a.jsonl", b"\xef\xbb\xbf", [], "the dataset is empty"),
    "jsonl: all rows bad": ("a.jsonl", b"{}\n{}\n", option(max_bad_share=1), "all 2 rows are bad"),
    # CSV
    "csv: no bytes": ("a.csv", b"", [], "column prompt is missing, found: nothing"),
    "csv: header only": ("a.csv", b"prompt,completion\n", [], "the dataset is empty"),
    "csv: column twice": ("a.csv", b"prompt,completion,prompt\n1,2,3\n", [], "the header has column 'prompt' twice"),
    "csv: column missing": (
        "a.csv",
        b"prompt,answer\n1,2\n",
        [],
        "column completion is missing, found: prompt, answer; detokenize.completion_column may name another",
    ),
    "csv: other separator": (
        "a.csv",
        b"prompt;completion\n1;2\n",
        [],
        "one column, 'prompt;completion', allowed: columns",
    ),
    "csv: no header": ("a.csv", b"1,2\n3,4\n", [], "column prompt is missing, found: 1, 2"),
    "csv: open quote": ("a.csv", b'prompt,completion\n1,"2\n3,4\n', [], "line 3: no valid CSV"),
    "csv: quote inside": ("a.csv", b'prompt,completion\n1,"2"3\n', [], "line 2: no valid CSV"),
    "csv: line ends of old": ("a.csv", b"prompt,completion\r1,2\r", [], "line 1: no valid CSV: new-line character"),
    "csv: two kinds of line end": ("a.csv", b"prompt,completion\n1,2\r3,4\n", [], "line 2: no valid CSV: new-line"),
    "csv: endless line": (
        "a.csv",
        b"prompt,completion\n1," + b"x" * (17 * MIB),
        [],
        "no valid CSV: longer than 16777216",
    ),
    "csv: conversations": ("a.csv", b"messages\nx\n", MESSAGES, "detokenize.record is messages, which CSV cannot hold"),
    # Parquet
    "parquet: no bytes": ("a.parquet", b"", TEXT, "cannot be read"),
    "parquet: text": ("a.parquet", b"text\nhello\n", TEXT, "cannot be read"),
    "parquet: cut": ("a.parquet", parquet(200, text=["a"] * 99), TEXT, "cannot be read"),
    "parquet: last byte missing": ("a.parquet", parquet(-1, text=["a"]), TEXT, "cannot be read"),
    "csv: another record": (
        "a.csv",
        b"instruction,input,output\ni,,o\n",
        [],
        "column prompt is missing, found: instruction, input, output; detokenize.record may be alpaca",
    ),
    "json: another record": (
        "a.json",
        array({"id": 1, "conversations": []}),
        [],
        "row 0: prompt is missing, found: id, conversations; detokenize.record may be sharegpt",
    ),
    "parquet: column missing": ("a.parquet", parquet(body=["a"]), TEXT, "column text is missing, found: body"),
    "parquet: column twice": ("a.parquet", parquet_of(twice(text=["a"])), TEXT, "there are 2 columns text"),
    "parquet: numbers": ("a.parquet", parquet(text=[1]), TEXT, "column text has type int64, allowed: text"),
    "parquet: bytes": ("a.parquet", parquet(text=[b"a"]), TEXT, "column text has type binary, allowed: text"),
    "parquet: lists of text": ("a.parquet", parquet(text=[["a"]]), TEXT, "column text has type list<element: string>"),
    "parquet: texts as messages": ("a.parquet", parquet(messages=["a"]), MESSAGES, "column messages has type string"),
    "parquet: real numbers divide": (
        "a.parquet",
        parquet(text=["a"], key=[0.5]),
        [*TEXT, *option(split_column="key")],
        "column key has type double, allowed: text or whole number",
    ),
    "parquet: no rows": ("a.parquet", parquet(text=pa.array([], pa.string())), TEXT, "the dataset is empty"),
    # Arrow
    "arrow: no bytes": ("a.arrow", b"", TEXT, "cannot be read"),
    "arrow: text": ("a.arrow", b"text\nhello\n", TEXT, "cannot be read"),
    "arrow: file cut": ("a.arrow", arrow(-40, stream=False, text=["a"] * 99), TEXT, "cannot be read"),
    "arrow: stream cut": ("a.arrow", arrow(350, text=["a"] * 99), TEXT, "cannot be read"),
    "arrow: offset outside": ("a.arrow", arrow_with_offset, TEXT, "cannot be read: column text: "),
    "arrow: column missing": ("a.arrow", arrow(body=["a"]), TEXT, "column text is missing, found: body"),
    "arrow: numbers": ("a.feather", arrow(stream=False, text=[1.5]), TEXT, "column text has type double"),
    "arrow: message no UTF-8": (
        "a.arrow",
        arrow(messages=pa.array([[{"role": b"user", "content": b"\xff"}]]).view(CONVERSATION)),
        MESSAGES,
        "cannot be read: column messages: List child array invalid",
    ),
    # One array: what leaves it open where its rows are is refused as a whole.
    "json: no bytes": ("a.json", b"", [], "the dataset is empty"),
    "json: no rows": ("a.json", b" [ ]\n", [], "the dataset is empty"),
    "json: cut in an object": ("a.json", array(GOOD, GOOD)[:-5], [], "row 1: the file ends within the array"),
    "json: cut between objects": ("a.json", array(GOOD)[:-1] + b",", [], "row 1: the file ends within the array"),
    "json: a quote missing": (
        "a.json",
        b'[{"prompt": "a, "completion": "b"}]',
        option(max_bad_share=1),
        "row 0: the file ends within the array, it is cut off or lacks a bracket or quote",
    ),
    "json: a brace too many": ("a.json", b'[{"prompt": "a"}}, {}]', [], "row 0: a bracket or quote is missing or one"),
    "json: two arrays": ("a.json", array(GOOD) + b"\n" + array(GOOD), [], '\'[{"prompt": "p", "co\' follows the'),
    "json: an object over lines": ("a.json", b'{\n "data": [{}]\n}\n', [], "is one JSON object, allowed: one array of"),
    "json: an object on a line": ("a.json", b'{"data": [{}]}', [], "row 0: prompt is missing, found: data"),
    "json: all rows bad": ("a.json", b"[{}, {}]", option(max_bad_share=1), "all 2 rows are bad"),
    # Several files
    "files: none": ("a.md", b"hello", [], "no data file"),
    "files: none but a licence": ("LICENSE.txt", b"hello", [], "no data file"),
    # Plain text: a file a row.
    "text: of another record": ("a.txt", b"hello", [], "detokenize.record is completion, allowed for *.txt: text"),
    "text: no bytes": ("a.txt", b"", TEXT, "row 0: text is empty"),
    "text: no UTF-8": ("a.txt", b"a\xff", TEXT, "row 0: text is no valid UTF-8 at byte 1"),
    "text: too long": ("a.txt", b"x" * 17 * MIB, TEXT, "row 0: is longer than 16777216 bytes"),
    "files: none of the format": ("a.csv", b"text\na\n", option(format="parquet"), "no parquet file (*.parquet)"),
    "files: a part alone": ("train.jsonl", jsonl(GOOD), [], "allowed: train.jsonl, validation.jsonl and test.jsonl"),
}

BAD_ROWS: dict[str, Case] = {
    # HDF5: the second row of four is bad.
    "hdf5: id outside": (
        "a.h5",
        ids([1, 3, 2], [1, 51, 2], [1, 4, 2], [1, 4, 2]),
        [],
        "id 51 at position 1 is outside",
    ),
    "hdf5: negative id": (
        "a.h5",
        ids([1, 3, 2], [1, -3, 2], [1, 4, 2], [1, 4, 2]),
        [],
        "id -3 at position 1 is outside",
    ),
    "hdf5: id beyond 16 bits": (
        "a.h5",
        ids([1, 3, 2], [1, 3 + 2**16, 2], [1, 4, 2], [1, 4, 2], dtype="int64"),
        [],
        "id 65539 at position 1 is outside",
    ),
    "hdf5: no end": ("a.h5", ids([1, 3, 2], [1, 3, 4], [1, 4, 2], [1, 4, 2]), [], "has no <EOS>"),
    "hdf5: no start": ("a.h5", ids([1, 3, 2], [3, 4, 2], [1, 4, 2], [1, 4, 2]), [], "does not begin with <SOS>"),
    "hdf5: padded on the other side": (
        "a.h5",
        ids([1, 3, 2], [0, 0, 0, 1, 3, 2], [1, 4, 2], [1, 4, 2]),
        [],
        "does not begin with <SOS>",
    ),
    "hdf5: padding configured": (
        "a.h5",
        ids([0, 1, 3, 2], [1, 3, 2, 0], [0, 1, 4, 2], [1, 3, 3, 2], width=4),
        option(padding="left"),
        "has id 0 at position 3 after <EOS>, allowed: nothing",
    ),
    "hdf5: ragged with padding": (
        "a.h5",
        ragged([1, 3, 2], [1, 3, 2, 0], [1, 4, 2], [1, 2**8 - 210, 2]),
        [],
        "has id 0 at position 3 after <EOS>, allowed: nothing",
    ),
    "hdf5: ragged row without ids": (
        "a.h5",
        ragged([1, 3, 2], [], [1, 4, 2], [1, 4, 2]),
        [],
        "does not begin with <SOS>",
    ),
    # JSON lines
    "jsonl: no JSON": ("a.jsonl", jsonl(GOOD) + b"{\n" + jsonl(GOOD, GOOD), [], "is no valid JSON"),
    "jsonl: empty line": ("a.jsonl", jsonl(GOOD) + b"\n" + jsonl(GOOD, GOOD), [], "is no valid JSON"),
    "jsonl: cut": ("a.jsonl", jsonl(GOOD) + b'{"prompt": "a"', [], "is no valid JSON"),
    "jsonl: two on a line": (
        "a.jsonl",
        jsonl(GOOD) + b"{}{}\n" + jsonl(GOOD, GOOD),
        [],
        "is no valid JSON: Extra data",
    ),
    "jsonl: no UTF-8": ("a.jsonl", jsonl(GOOD) + b'{"prompt": "\xff"}\n', [], "is no valid UTF-8 at byte 12"),
    "jsonl: lone surrogate": ("a.jsonl", jsonl(GOOD, GOOD | {"prompt": "a\ud800"}), [], "prompt is no valid UTF-8"),
    "jsonl: key twice": (
        "a.jsonl",
        jsonl(GOOD) + b'{"prompt": "a", "completion": "b", "prompt": "c"}\n',
        [],
        "is no valid JSON: the key 'prompt' is given twice",
    ),
    "jsonl: no number": ("a.jsonl", jsonl(GOOD) + b'{"x": NaN}\n', [], "is no valid JSON: NaN is no JSON number"),
    "jsonl: nested too deeply": ("a.jsonl", jsonl(GOOD) + b"[" * 100_000 + b"\n", [], "is no valid JSON"),
    "jsonl: a list": (
        "a.jsonl",
        jsonl(GOOD, ["p", "c"]),
        [],
        "is a list, allowed: an object with a key for each column",
    ),
    "jsonl: a text": ("a.jsonl", jsonl(GOOD, "text"), [], "is a str, allowed: an object"),
    "jsonl: too long": ("a.jsonl", jsonl(GOOD, "x" * 17 * MIB, GOOD), [], "is longer than 16777216 bytes"),
    "jsonl: column missing": ("a.jsonl", jsonl(GOOD, {"prompt": "a"}), [], "completion is missing, found: prompt"),
    "jsonl: null": ("a.jsonl", jsonl(GOOD, GOOD | {"prompt": None}), [], "prompt is null"),
    "jsonl: number": (
        "a.jsonl",
        jsonl(GOOD, GOOD | {"completion": 3}),
        [],
        "completion is of type int, allowed: a text",
    ),
    "jsonl: list of texts": (
        "a.jsonl",
        jsonl(GOOD, GOOD | {"prompt": ["a"]}),
        [],
        "prompt is of type list, allowed: a text",
    ),
    "jsonl: empty completion": ("a.jsonl", jsonl(GOOD, GOOD | {"completion": ""}), [], "completion is empty"),
    "jsonl: empty text": ("a.jsonl", jsonl({"text": "a"}, {"text": ""}), TEXT, "text is empty"),
    "jsonl: a text where a label's number should be": (
        "a.jsonl",
        jsonl(GOOD | {"completion": 1}, GOOD | {"completion": "x" * 999}),
        ["--detokenize.labels", "no", "yes"],
        f"completion is '{'x' * 79}, allowed: 0 to 1, the numbers of the labels",
    ),
    "jsonl: key of the division": (
        "a.jsonl",
        jsonl({"text": "a", "book": 1}, {"text": "b", "book": 1.5}),
        [*TEXT, *option(split_column="book")],
        "book is of type float",
    ),
    # CSV
    "csv: too few fields": ("a.csv", b"prompt,completion\n1,2\n3\n5,6\n", [], "has 1 fields, the header has 2"),
    "csv: too many fields": ("a.csv", b"prompt,completion\n1,2\n3,4,\n5,6\n", [], "has 3 fields, the header has 2"),
    "csv: empty line": ("a.csv", b"prompt,completion\n1,2\n\n5,6\n", [], "has 0 fields, the header has 2"),
    "csv: no UTF-8": (
        "a.csv",
        b"prompt,completion\n1,2\n\xe4,4\n5,6\n",
        [],
        "prompt is no valid UTF-8 at character 0",
    ),
    "csv: empty completion": ("a.csv", b"prompt,completion\n1,2\n3,\n5,6\n", [], "completion is empty"),
    "csv: line ends in a field": ("a.csv", b'prompt,completion\n"1\n\n1",2\n3,\n5,6\n', [], "completion is empty"),
    # Parquet and Arrow
    "parquet: null": ("a.parquet", parquet(text=["a", None, "c"]), TEXT, "text is null"),
    "parquet: empty": ("a.parquet", parquet(text=["a", "", "c"]), TEXT, "text is empty"),
    "parquet: no UTF-8": (
        "a.parquet",
        parquet(text=not_utf8(b"a", b"b\xff")),
        TEXT,
        "text is no valid UTF-8 at byte 1",
    ),
    "arrow: null": ("a.arrow", arrow(text=["a", None, "c"]), TEXT, "text is null"),
    "arrow: no UTF-8": ("a.arrow", arrow(text=not_utf8(b"a", b"\xc3")), TEXT, "text is no valid UTF-8 at byte 0"),
    "arrow: null messages": ("a.arrow", arrow(messages=[CHAT, None]), MESSAGES, "messages is null"),
    "parquet: another role": (
        "a.parquet",
        parquet(messages=[CHAT, [{"role": "tool", "content": "x"}]]),
        MESSAGES,
        "messages[0].role is 'tool', allowed: system, user, assistant",
    ),
    "parquet: null content": (
        "a.parquet",
        parquet(messages=[CHAT, [{"role": "user", "content": None}]]),
        MESSAGES,
        "messages[0].content is null",
    ),
    # Instructions and conversations
    "alpaca: null input": (
        "a.jsonl",
        jsonl({"instruction": "i", "input": "", "output": "o"}, {"instruction": "i", "input": None, "output": "o"}),
        option(record="alpaca"),
        "input is null",
    ),
    "alpaca: empty instruction": (
        "a.jsonl",
        jsonl({"instruction": "i", "input": "", "output": "o"}, {"instruction": "", "input": "", "output": "o"}),
        option(record="alpaca"),
        "instruction is empty",
    ),
    "dolly: response missing": (
        "a.jsonl",
        jsonl({"instruction": "i", "context": "", "response": "o"}, {"instruction": "i", "context": "", "output": "o"}),
        option(record="dolly"),
        "response is missing, found: instruction, context, output",
    ),
}
TURNS: dict[str, tuple[Any, str]] = {
    "no list": ("hello", "messages is of type str, allowed: a list of messages"),
    "empty": ([], "messages has no assistant turn"),
    "a text as message": ([*CHAT, "x"], "messages[2] is of type str, allowed: role and content"),
    "no role": ([{"content": "x"}], "messages[0].role is missing, found: content"),
    "sharegpt's keys": (
        [{"from": "human", "value": "x"}],
        "messages[0] has no role, found: from, value; for these detokenize.record is sharegpt and",
    ),
    "role of another language": ([{"role": "Nutzer", "content": "x"}], "messages[0].role is 'Nutzer', allowed: system"),
    "no content": ([{"role": "user"}], "messages[0].content is missing, found: role"),
    "content in pieces": ([{"role": "user", "content": [{"text": "x"}]}], "messages[0].content is of type list"),
    "only a user": ([CHAT[0]], "messages has no assistant turn"),
    "ends with a user": ([*CHAT, CHAT[0]], "messages does not end with an assistant turn"),
    "begins with an assistant": (
        [CHAT[1]],
        "messages[0].role is assistant after the beginning, allowed: system or user",
    ),
    "two users": ([CHAT[0], *CHAT], "messages[1].role is user after user, allowed: assistant"),
    "two assistants": ([*CHAT, CHAT[1]], "messages[2].role is assistant after assistant, allowed: user"),
    "late system": ([*CHAT, {"role": "system", "content": "s"}], "messages[2].role is system after assistant"),
    "system without user": (
        [{"role": "system", "content": "s"}, CHAT[1]],
        "messages[1].role is assistant after system, allowed: user",
    ),
    "empty answer": ([CHAT[0], {"role": "assistant", "content": ""}], "messages[1].content is empty"),
}
BAD_ROWS |= {
    f"messages: {name}": (
        "a.jsonl",
        jsonl({"messages": CHAT}, {"messages": turns}, {"messages": CHAT}),
        MESSAGES,
        message,
    )
    for name, (turns, message) in TURNS.items()
}

# The same rows in one array are bad for the same reason, if their brackets and quotes match.
OPEN = ("jsonl: no JSON", "jsonl: cut", "jsonl: nested too deeply")
BAD_ROWS |= {
    f"json: {name}": ("a.json", b"[" + content.rstrip(b"\n").replace(b"\n", b",") + b"]", options, message)
    for name, (_, content, options, message) in BAD_ROWS.items()
    if name.startswith("jsonl: ") and name not in OPEN and isinstance(content, bytes)
}

BAD_VOCABULARIES: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "no valid JSON"),
    "a list": (list(WORDS), "must be a JSON object"),
    "no padding": ({"<SOS>": 0, "<EOS>": 1}, "<PAD> is missing"),
    "a gap": (WORDS | {"c": 9}, "'c' has id 9, allowed: 0 to 5"),
    "an id twice": (WORDS | {"c": 4}, "'c' and 'b' have the same id 4"),
    "an id of text": (WORDS | {"c": "5"}, "'c' has id '5', allowed: 0 to 5"),
    "a real id": (WORDS | {"c": 5.0}, "'c' has id 5.0, allowed: 0 to 5"),
    "a negative id": (WORDS | {"c": -1}, "'c' has id -1, allowed: 0 to 5"),
    "an empty token": (WORDS | {"": 5}, "the token '' of id 5 is no text"),
    "too large": ({str(number): number for number in range(2**16 + 1)}, "65537 entries, allowed: at most 65536"),
}


def raw(folder: Path, name: str, content: Content) -> Path:
    """A raw artifact with one file."""
    with Artifact(folder / "raw", stage="download") as artifact:
        if isinstance(content, bytes):
            (artifact.path / name).write_bytes(content)
        else:
            content(artifact.path / name)
    return folder / "raw"


def failure(folder: Path, options: Sequence[str], capfd: pytest.CaptureFixture[str]) -> str:
    """The one error line of a run that fails as it should."""
    program = stages.module("detokenize")
    arguments = ["--raw", str(folder / "raw"), "--output", str(folder / "text"), *options]
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.run(program.main, program.build_parser(), arguments)
    printed = capfd.readouterr().err
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert stop.value.code == cli.USER_ERROR and len(errors) == 1 and "Traceback" not in printed, printed
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".json") == ["raw"], "nothing half-written"
    return errors[0]


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_line(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file, content, options, message = BAD_FILES[name]
    raw(tmp_path, file, content)
    line = failure(tmp_path, options, capfd)
    assert message in line
    assert str(tmp_path / "raw") in line or line.startswith("error: detokenize."), "file or key"


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_one_line_or_counted(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file, content, options, message = BAD_ROWS[name]
    folder = raw(tmp_path, file, content)
    line = failure(tmp_path, options, capfd)
    assert line.startswith(f"error: {folder / file}: row 1: ") and message in line

    shares = option(max_bad_share=0.5, validation_share=0, test_share=0)
    stages.call("detokenize", "--raw", folder, "--output", tmp_path / "text", *options, *shares)
    bad = [json.loads(each) for each in (tmp_path / "text" / "bad_rows.jsonl").read_bytes().splitlines()]
    assert [(each["file"], each["row"]) for each in bad] in ([(file, 1)], [(file, 1), (file, 3)])
    assert message in f"{bad[0]['column']} {bad[0]['reason']}"
    facts = open_artifact(tmp_path / "text").facts
    assert facts["bad_rows"] == len(bad)
    assert facts["rows"]["train"] == (tmp_path / "text" / "train.jsonl").read_bytes().count(b"\n") >= 1


@pytest.mark.parametrize("name", BAD_VOCABULARIES)
def test_a_bad_vocabulary_is_one_line(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content, message = BAD_VOCABULARIES[name]
    path = tmp_path / "words.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    raw(tmp_path, "a.h5", ids([1, 3, 2]))
    line = failure(tmp_path, option(vocabulary=path), capfd)
    assert line.startswith(f"error: {path}: ") and message in line


def test_a_damaged_raw_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = raw(tmp_path, "a.jsonl", jsonl(GOOD))
    (folder / "a.jsonl").write_bytes(jsonl(GOOD, GOOD))
    assert "a.jsonl: 70 bytes found, 35 in" in failure(tmp_path, [], capfd)


def test_there_are_at_least_sixty_cases() -> None:
    tables: list[Mapping[str, Any]] = [BAD_FILES, BAD_ROWS, BAD_VOCABULARIES]
    assert sum(map(len, tables)) >= 60
