"""Rows of Parquet files and of Arrow IPC files and streams, a batch at a time."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from corax.detokenize.columns import missing
from corax.detokenize.lines import Batch
from corax.errors import CoraxError

BATCH_ROWS = 1024
BUFFER_BYTES = 2**20
IPC_FILE = b"ARROW1"
"""How an Arrow IPC file begins; a stream begins with its schema."""

Content = Literal["text", "messages", "text or whole number"]
Needed = Mapping[str, Content]
"""The columns to read and what they hold."""

_BINARY = {
    pa.string(): pa.binary(),
    pa.large_string(): pa.large_binary(),
    pa.string_view(): pa.binary_view(),
}


def count_parquet(path: Path, needed: Needed) -> int:
    """The number of rows; raises CoraxError for a damaged file or a column that is missing or of another type."""
    with _readable(path), _parquet(path) as file:
        _check(path, file.schema_arrow, needed)
        return int(file.metadata.num_rows)


def parquet_batches(path: Path, needed: Needed) -> Iterator[Batch]:
    """The rows, texts as bytes."""
    with _readable(path), _parquet(path) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=list(needed)):
            yield from _batches(batch, needed)


def count_arrow(path: Path, needed: Needed) -> int:
    """As `count_parquet`; all batches are read once."""
    with _readable(path):
        return sum(batch.num_rows for batch in _ipc_batches(path, needed))


def arrow_batches(path: Path, needed: Needed) -> Iterator[Batch]:
    """The rows, texts as bytes."""
    with _readable(path):
        for batch in _ipc_batches(path, needed):
            yield from _batches(batch, needed)


def _parquet(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER_BYTES)


def _ipc_batches(path: Path, needed: Needed) -> Iterator[pa.RecordBatch]:
    with path.open("rb") as opened:
        is_file = opened.read(len(IPC_FILE)) == IPC_FILE
    with pa.OSFile(str(path)) as source, (pa.ipc.open_file if is_file else pa.ipc.open_stream)(source) as reader:
        _check(path, reader.schema, needed)
        if is_file:
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            yield from reader


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CoraxError(f"{path}: cannot be read: {reason}") from None


def _check(path: Path, schema: pa.Schema, needed: Needed) -> None:
    for column, content in needed.items():
        count = schema.names.count(column)
        if count == 0:
            raise CoraxError(f"{path}: column {column} {missing(column, schema.names)}")
        if count > 1:
            raise CoraxError(f"{path}: there are {count} columns {column}")
        found_type = schema.field(column).type
        if not _is(found_type, content):
            raise CoraxError(f"{path}: column {column} has type {found_type}, allowed: {content}")


def _is(type: pa.DataType, content: str) -> bool:
    if types.is_null(type):
        return True
    if content == "messages":
        lists = types.is_list(type) or types.is_large_list(type) or types.is_fixed_size_list(type)
        return bool(lists and types.is_struct(type.value_type))
    own = type.value_type if types.is_dictionary(type) else type
    return bool(own in _BINARY or (content != "text" and types.is_integer(own)))


def _batches(batch: pa.RecordBatch, needed: Needed) -> Iterator[Batch]:
    """Slices of a batch as Python objects, after a check of every offset in it: Arrow trusts its files.

    A column of texts is viewed as bytes, so that one that is no UTF-8 spoils its own row only.
    """
    columns = {name: _as_bytes(batch.column(name)) for name in needed}
    for name, array in columns.items():
        try:
            array.validate(full=True)
        except pa.ArrowInvalid as error:
            raise pa.ArrowInvalid(f"column {name}: {error}") from None
    for start in range(0, batch.num_rows, BATCH_ROWS):
        values = [array.slice(start, BATCH_ROWS).to_pylist() for array in columns.values()]
        yield [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]


def _as_bytes(array: pa.Array) -> pa.Array:
    """A column of texts as one of bytes in the same memory; any other as it is."""
    if types.is_dictionary(array.type) and array.type.value_type in _BINARY:
        return pa.DictionaryArray.from_arrays(array.indices, _as_bytes(array.dictionary))
    return array.view(_BINARY[array.type]) if array.type in _BINARY else array
