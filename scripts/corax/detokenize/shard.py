"""Writes a text artifact: the parts of a dataset, and its bad rows."""

import json
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from corax.detokenize import hashing
from corax.detokenize.block import Block, Spans
from corax.detokenize.errors import BadRowError
from corax.detokenize.files import PARTS
from corax.errors import CoraxError
from corax.settings.detokenize import DetokenizeSettings

LOGGED_BAD_ROWS = 5

log = logging.getLogger("corax")


class Shard:
    """The open files of a text artifact in `folder`: one for each part, and `bad_rows.jsonl`.

    `rows` counts what was written by part, `bad_rows` and `duplicates` what was not.
    """

    def __init__(self, folder: Path, settings: DetokenizeSettings, total_rows: int) -> None:
        self.rows = dict.fromkeys(PARTS, 0)
        self.bad_rows = self.duplicates = 0
        self._folder, self._settings = folder, settings
        self._allowed_bad_rows = int(settings.max_bad_share * total_rows)
        self._seen = hashing.Seen() if settings.deduplicate else None
        self._stack = ExitStack()

    def __enter__(self) -> "Shard":
        self._files: dict[str, BinaryIO] = {
            name: self._stack.enter_context((self._folder / f"{name}.jsonl").open("wb"))
            for name in (*PARTS, "bad_rows")
        }
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def add(self, path: Path, name: str, part: str | None, block: Block) -> None:
        """Write a block of rows of the file `path`, recorded as `name`; where `part` is None, the keys decide."""
        for row, error in block.bad:
            self._add_bad_row(path, name, row, error)
        good = block.lines.stops > block.lines.starts
        if self._seen is not None:
            good[good] = new = self._seen.add(hashing.digests(*block.lines.of_rows(good)))
            self.duplicates += len(new) - int(new.sum())
        for each, chosen in self._divide(part, good, block.keys).items():
            self.rows[each] += int(chosen.sum())
            self._files[each].write(block.lines.select(chosen))

    def _divide(self, part: str | None, good: npt.NDArray[np.bool_], keys: Spans) -> dict[str, npt.NDArray[np.bool_]]:
        """Keys are divided by their hash, so that no part knows another's prompts."""
        if part is not None:
            return {part: good}
        place = hashing.shares(hashing.digests(*keys))
        test, held_out = self._settings.test_share, self._settings.test_share + self._settings.validation_share
        return {
            "train": good & (place >= held_out),
            "validation": good & (place >= test) & (place < held_out),
            "test": good & (place < test),
        }

    def _add_bad_row(self, path: Path, name: str, row: int, error: BadRowError) -> None:
        self.bad_rows += 1
        line = f"{path}: row {row}: {error}"
        if self.bad_rows == 1:
            self._first_bad_row = line
        if self.bad_rows > self._allowed_bad_rows:
            raise CoraxError(
                f"{self._first_bad_row} ({self.bad_rows} bad rows so far, "
                f"{self._allowed_bad_rows} allowed by detokenize.max_bad_share {self._settings.max_bad_share})"
            )
        if self.bad_rows <= LOGGED_BAD_ROWS:
            log.warning("bad row skipped: %s", line)
        entry = {"file": name, "row": row, "column": error.column, "reason": error.reason}
        self._files["bad_rows"].write(json.dumps(entry, ensure_ascii=False).encode(errors="replace") + b"\n")
