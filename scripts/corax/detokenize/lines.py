"""Rows of text formats: JSON (lines, or one array), CSV and plain text, a batch at a time.

A row is a mapping from column to value, or what is wrong with it.
"""

import codecs
import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO

from corax.detokenize import json_array
from corax.detokenize.columns import missing
from corax.detokenize.errors import BadRowError
from corax.errors import CoraxError

ROW_BYTES = 2**24
"""Longest row: a file without line ends must not claim all memory."""
BATCH_ROWS, BATCH_BYTES = 1024, 2**24

Batch = list[dict[str, Any] | BadRowError]


def count_jsonl(path: Path) -> int:
    """The number of lines; a last one need not end with a newline."""
    count, last = 0, b"\n"
    with _behind_mark(path) as file:
        while block := file.read(2**20):
            count, last = count + block.count(b"\n"), block[-1:]
    return count + (last != b"\n")


def jsonl_batches(path: Path) -> Iterator[Batch]:
    """The lines as objects."""
    return _objects(_lines(path))


def _behind_mark(path: Path) -> BinaryIO:
    """The file, open behind the byte order mark that some programs put at its beginning."""
    file = path.open("rb")
    if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
        file.seek(0)
    return file


def count_json(path: Path) -> int:
    """The number of elements of one array, or of lines; raises CoraxError for an array that does not end as it must."""
    return sum(1 for _ in json_array.elements(path, ROW_BYTES)) if json_array.is_array(path) else count_jsonl(path)


def json_batches(path: Path) -> Iterator[Batch]:
    """The elements of one array, or the lines, as objects."""
    return _objects(json_array.elements(path, ROW_BYTES)) if json_array.is_array(path) else jsonl_batches(path)


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of at most ROW_BYTES + 1 bytes; what is longer is cut, and so shows."""
    with _behind_mark(path) as file:
        while line := file.readline(ROW_BYTES + 1):
            rest = line
            while len(rest) > ROW_BYTES and not rest.endswith(b"\n"):
                rest = file.readline(ROW_BYTES + 1)
            yield line


def _objects(rows: Iterable[bytes]) -> Iterator[Batch]:
    batch: Batch = []
    size = 0
    for row in rows:
        batch.append(_object(row))
        size += len(row)
        if len(batch) == BATCH_ROWS or size > BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _object(line: bytes) -> dict[str, Any] | BadRowError:
    if len(line) > ROW_BYTES:
        return _too_long()
    try:
        found = json.loads(line.decode(), object_pairs_hook=_without_repetition, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        return BadRowError(None, f"is no valid UTF-8 at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return BadRowError(None, f"is no valid JSON: {error}")
    if not isinstance(found, dict):
        return BadRowError(None, f"is a {type(found).__name__}, allowed: an object with a key for each column")
    return found


def _too_long() -> BadRowError:
    return BadRowError(None, f"is longer than {ROW_BYTES} bytes")


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def text_batches(path: Path, column: str) -> Iterator[Batch]:
    """The whole file as the one text of one row."""
    with path.open("rb") as file:
        content = file.read(ROW_BYTES + 1)
    yield [_too_long() if len(content) > ROW_BYTES else {column: content.removeprefix(codecs.BOM_UTF8)}]


def count_csv(path: Path, needed: Sequence[str]) -> int:
    """The number of rows after the header; a quoted field may have line ends."""
    return sum(map(len, csv_batches(path, needed)))


def csv_batches(path: Path, needed: Sequence[str]) -> Iterator[Batch]:
    """The rows (RFC 4180: commas, double quotes), all values text; the first line names the columns.

    Raises CoraxError for a header without one of the columns `needed` or with one twice, and for broken quoting,
    after which nobody knows where rows begin.
    """
    csv.field_size_limit(ROW_BYTES)
    # Bytes that are no UTF-8 become lone surrogates, by which their row is recognised.
    with path.open("rb") as file, TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="\n") as text:
        rows = csv.reader(_short(text), strict=True)
        try:
            header = _header(path, next(rows, []), needed)
            batch: Batch = []
            size = 0
            for fields in rows:
                batch.append(_row(header, fields))
                size += sum(map(len, fields))
                if len(batch) == BATCH_ROWS or size > BATCH_BYTES:
                    yield batch
                    batch, size = [], 0
            if batch:
                yield batch
        except csv.Error as error:
            raise CoraxError(f"{path}: line {rows.line_num}: no valid CSV: {error}") from None


def _short(text: TextIOWrapper) -> Iterator[str]:
    while line := text.readline(ROW_BYTES):
        if len(line) == ROW_BYTES:
            raise csv.Error(f"longer than {ROW_BYTES} characters")
        yield line


def _header(path: Path, header: list[str], needed: Sequence[str]) -> list[str]:
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise CoraxError(f"{path}: the header has column {twice[0]!r} twice")
    if len(header) == 1 and any(separator in header[0] for separator in ";\t|"):
        raise CoraxError(f"{path}: the header is one column, {header[0][:200]!r}, allowed: columns separated by commas")
    for name in needed:
        if name not in header:
            raise CoraxError(f"{path}: column {name} {missing(name, header)}")
    return header


def _row(header: list[str], fields: list[str]) -> dict[str, Any] | BadRowError:
    if len(fields) != len(header):
        return BadRowError(None, f"has {len(fields)} fields, the header has {len(header)}")
    return dict(zip(header, fields, strict=True))
