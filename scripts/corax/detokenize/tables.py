"""Reads JSON, CSV, Parquet, Arrow and text files whose rows are records, and makes the rows samples."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from corax.detokenize import arrow, lines
from corax.detokenize.block import Block, Spans
from corax.detokenize.errors import BadRowError
from corax.detokenize.records import RECORDS, class_name, division_key
from corax.errors import CoraxError
from corax.settings.detokenize import DetokenizeSettings, Format


class TableReader:
    """Reads rows of one kind of record; `kind` is what its samples are: completion, messages or text."""

    def __init__(self, settings: DetokenizeSettings, format: Format) -> None:
        record = RECORDS[settings.record]
        if format == "csv" and record.kind == "messages":
            raise CoraxError(f"detokenize.record is {settings.record}, which CSV cannot hold; use JSON or Parquet")
        if format == "text" and record.kind != "text":
            raise CoraxError(f"detokenize.record is {settings.record}, allowed for *.txt: text")
        self.kind, self._sample = record.kind, record.sample
        self._format, self._split_column = format, settings.split_column
        self._columns = settings.columns(format)
        self._needed: dict[str, arrow.Content] = {
            name: "messages" if key == "messages_column" else "text" for key, name in self._columns.items()
        }
        self._labels = settings.labels
        if settings.labels:
            self._needed[self._columns["completion_column"]] = "text or whole number"
        if settings.split_column:
            self._needed.setdefault(settings.split_column, "text or whole number")

    def count(self, path: Path) -> int:
        """The number of rows, good or bad; raises CoraxError for a file that cannot be read at all."""
        match self._format:
            case "jsonl":
                return lines.count_jsonl(path)
            case "json":
                return lines.count_json(path)
            case "csv":
                return lines.count_csv(path, list(self._needed))
            case "text":
                return 1
            case "parquet":
                return arrow.count_parquet(path, self._needed)
            case _:
                return arrow.count_arrow(path, self._needed)

    def blocks(self, path: Path) -> Iterator[Block]:
        """The rows of a file, in order; raises CoraxError for what cannot be read."""
        row = 0
        for batch in self._batches(path):
            samples: list[tuple[bytes, bytes]] = []
            bad: list[tuple[int, BadRowError]] = []
            for values in batch:
                try:
                    samples.append(self._line(values))
                except BadRowError as error:
                    bad.append((row, error))
                row += 1
            yield Block(len(batch), Spans.of(line for line, _ in samples), Spans.of(key for _, key in samples), bad)

    def _batches(self, path: Path) -> Iterator[lines.Batch]:
        match self._format:
            case "jsonl":
                return lines.jsonl_batches(path)
            case "json":
                return lines.json_batches(path)
            case "csv":
                return lines.csv_batches(path, list(self._needed))
            case "text":
                return lines.text_batches(path, self._columns["text_column"])
            case "parquet":
                return arrow.parquet_batches(path, self._needed)
            case _:
                return arrow.arrow_batches(path, self._needed)

    def _line(self, values: dict[str, Any] | BadRowError) -> tuple[bytes, bytes]:
        """The JSON line of a row and the key that decides its part; raises BadRowError."""
        if isinstance(values, BadRowError):
            raise values
        if self._labels:
            column = self._columns["completion_column"]
            values = {**values, column: class_name(values, column, self._labels)}
        sample = self._sample(values, self._columns)
        key = division_key(values, self._split_column) if self._split_column else sample.key
        line = _json(sample.content) + b"\n"
        if len(line) > lines.ROW_BYTES:
            raise BadRowError(None, f"becomes a sample of {len(line)} bytes, allowed: at most {lines.ROW_BYTES}")
        return line, _json(key)


def _json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()
