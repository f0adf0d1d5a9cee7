"""Token shards: the Parquet files that `pretokenize` writes and `plan`, `train` and `evaluate` read.

shards = TokenShards([Path("results/datasets/d/tokens/m/000")], "train")
input_ids, targets = shards.row(shard=0, row=7)

On disk a row's target tokens, those that carry loss, are all from `prompt_length` on; conversations have several
stretches of them, in one more column: `target_spans` holds start and end of each, one after the other, the first start
being `prompt_length`. In memory they are positions in the row, whatever the kind of text.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from corax.artifact import Manifest, open_artifact
from corax.errors import CoraxError

PARTS = ("train", "validation", "test")
SCHEMA = pa.schema([("input_ids", pa.list_(pa.uint32())), ("prompt_length", pa.int32()), ("length", pa.int32())])
SPANS = pa.field("target_spans", pa.list_(pa.uint32()))
CONVERSATION_SCHEMA = SCHEMA.append(SPANS)
ROW_GROUP_ROWS = 512
"""Rows of a Parquet row group, the least that is decoded to read one row: some milliseconds."""
CACHE_TOKENS = 64 * 2**20
"""Tokens that a reader keeps decoded (4 bytes each)."""

Ids = npt.NDArray[np.uint32]
Lengths = npt.NDArray[np.int32]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _RowGroup:
    """A decoded row group: row i has the ids `ids[offsets[i] : offsets[i + 1]]`.

    Its targets are `spans[span_offsets[i] : span_offsets[i + 1]]`, starts and ends by turns.
    """

    ids: Ids
    offsets: Lengths
    spans: npt.NDArray[np.integer]
    span_offsets: Lengths


class TokenShards:
    """One part ("train", "validation" or "test") of the token folders `folders`, one folder a shard.

    `rows[shard]` is the number of rows; `facts` are the first shard's facts: its `template` and
    `tokenizer_sha256` hold for all. Raises CoraxError if a folder is missing, incomplete or has other
    columns, or if the shards were made with different tokenizers or templates.
    """

    def __init__(self, folders: Sequence[Path], part: str) -> None:
        if part not in PARTS:
            raise CoraxError(f"part {part!r}: unknown, allowed: {', '.join(PARTS)}")
        if not folders:
            raise CoraxError("no token folder is given")
        manifests = [open_artifact(folder) for folder in folders]
        self.part = part
        self.facts: dict[str, Any] = manifests[0].facts
        for manifest in manifests:
            if manifest.content["stage"] != "pretokenize":
                raise CoraxError(f"{manifest.artifact}: made by {manifest.content['stage']}, not by pretokenize")
            for key in ("tokenizer_sha256", "template"):
                if manifest.facts[key] != self.facts[key]:
                    raise CoraxError(f"{manifest.artifact}: {key} differs from that of {folders[0]}")
        self.paths = [folder / f"{part}.parquet" for folder in folders]
        self.rows = [_checked_rows(path) for path in self.paths]
        self._footers: dict[int, pq.FileMetaData] = {}
        self._cache: OrderedDict[tuple[int, int], _RowGroup] = OrderedDict()
        self._cached_tokens = 0

    def lengths(self) -> list[tuple[Lengths, Lengths]]:
        """For each shard (length, number of target tokens) of every row; reads no ids."""
        return [_read_lengths(path) for path in self.paths]

    def row(self, shard: int, row: int) -> tuple[Ids, Positions]:
        """(input_ids, targets) of one row: its ids, a read-only view, and the positions of those that carry loss."""
        if not 0 <= row < self.rows[shard]:
            raise CoraxError(f"{self.paths[shard]}: row {row} does not exist, allowed: 0 to {self.rows[shard] - 1}")
        group = self._row_group(shard, row // ROW_GROUP_ROWS)
        index = row % ROW_GROUP_ROWS
        ids = group.ids[group.offsets[index] : group.offsets[index + 1]]
        spans = group.spans[group.span_offsets[index] : group.span_offsets[index + 1]].reshape(-1, 2)
        return ids, np.concatenate([np.arange(start, end, dtype=np.int64) for start, end in spans])

    def _row_group(self, shard: int, number: int) -> _RowGroup:
        key = (shard, number)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        if shard not in self._footers:  # a megabyte and a half for a shard of half a million rows, and slow to read
            with _opened(self.paths[shard]) as file:
                self._footers[shard] = file.metadata
        group = _read(self.paths[shard], number, self._footers[shard])
        self._cache[key] = group
        self._cached_tokens += len(group.ids)
        while self._cached_tokens > CACHE_TOKENS and len(self._cache) > 1:
            self._cached_tokens -= len(self._cache.popitem(last=False)[1].ids)
        return group


def check_tokenizer(model: Manifest, shards: TokenShards) -> None:
    """Raise CoraxError if the ids in `shards` are not those of the model's tokenizer."""
    tokenizer = model.content["files"].get("tokenizer.json")
    if tokenizer is None:
        raise CoraxError(f"{model.artifact / 'tokenizer.json'}: missing: a model folder needs its tokenizer")
    if tokenizer["sha256"] != shards.facts["tokenizer_sha256"]:
        made_with = shards.paths[0].parent
        raise CoraxError(f"{model.artifact / 'tokenizer.json'}: not the tokenizer that {made_with} was made with")


@contextmanager
def _opened(path: Path, footer: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path, memory_map=True, metadata=footer) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise CoraxError(f"{path}: no valid Parquet file: {error}") from None


def _checked_rows(path: Path) -> int:
    """The number of rows, after a check of columns and row groups."""
    if not path.is_file():
        raise CoraxError(f"{path}: missing")
    with _opened(path) as file:
        schema, metadata = file.schema_arrow, file.metadata
    if not schema.equals(SCHEMA) and not schema.equals(CONVERSATION_SCHEMA):
        found = ", ".join(f"{field.name} {field.type}" for field in schema)
        wanted = ", ".join(f"{field.name} {field.type}" for field in SCHEMA)
        raise CoraxError(f"{path}: columns are {found}, allowed: {wanted}")
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    if any(size != ROW_GROUP_ROWS for size in sizes[:-1]) or any(size > ROW_GROUP_ROWS for size in sizes[-1:]):
        raise CoraxError(f"{path}: row groups are not of {ROW_GROUP_ROWS} rows")
    return int(metadata.num_rows)


def _read_lengths(path: Path) -> tuple[Lengths, Lengths]:
    with _opened(path) as file:
        has_spans = SPANS.name in file.schema_arrow.names
        columns = ["length", SPANS.name if has_spans else "prompt_length"]
        table = file.read(columns=columns, use_threads=False).combine_chunks()
    length = table["length"].to_numpy()
    if not has_spans:
        return length, length - table["prompt_length"].to_numpy()
    spans, offsets = _flat(table[SPANS.name])
    before = np.concatenate([[0], np.cumsum(spans[1::2].astype(np.int64) - spans[::2])])
    return length, np.diff(before[offsets // 2]).astype(np.int32)


def _read(path: Path, number: int, footer: pq.FileMetaData) -> _RowGroup:
    with _opened(path, footer) as file:
        table = file.read_row_group(number, use_threads=False)
    ids, offsets = _flat(table["input_ids"])
    lengths, first = table["length"].to_numpy(), table["prompt_length"].to_numpy()
    if SPANS.name in table.column_names:
        spans, span_offsets = _flat(table[SPANS.name])
    else:
        spans, span_offsets = np.stack([first, lengths], axis=1).ravel(), 2 * np.arange(len(first) + 1, dtype=np.int32)
    wrong = (np.diff(offsets) != lengths) | (first < 1) | (first >= lengths)
    wrong |= _wrong_spans(spans, span_offsets, lengths)
    if wrong.any():
        row = number * ROW_GROUP_ROWS + int(wrong.argmax())
        raise CoraxError(f"{path}: row {row} has no target token or a wrong length")
    return _RowGroup(ids, offsets, spans, span_offsets)


def _wrong_spans(spans: npt.NDArray[np.integer], offsets: Lengths, lengths: Lengths) -> npt.NDArray[np.bool_]:
    """For each row whether its spans are not pairs that follow one another from position 1 to the row's end."""
    counts = np.diff(offsets)
    wrong: npt.NDArray[np.bool_] = (counts < 2) | (counts % 2 != 0)
    if wrong.any():
        return wrong
    rows = np.repeat(np.arange(len(counts)), counts)
    previous = np.concatenate([[0], spans[:-1].astype(np.int64)])
    previous[offsets[:-1]] = 0
    wrong[rows[(spans <= previous) | (spans > lengths[rows])]] = True
    return wrong


def _flat(column: pa.ChunkedArray) -> tuple[Any, Lengths]:
    """Values and offsets of a column of lists."""
    lists = column.combine_chunks()
    return lists.flatten().to_numpy(), lists.offsets.to_numpy()
