"""Reading and writing pieces of files from several threads."""

import os
import threading
from pathlib import Path
from typing import BinaryIO, Self

from corax.errors import CoraxError


class Output:
    """A file that several threads write to, one at a time: the kernel would let them spin for its lock on the file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def write_at(self, start: int, data: bytes | memoryview) -> None:
        """Write `data` from byte `start` on."""
        rest = memoryview(data).cast("B")
        with self._lock:
            while rest:
                count = os.pwrite(self._file.fileno(), rest, start)
                rest, start = rest[count:], start + count


def read_at(file: BinaryIO, start: int, into: memoryview) -> None:
    """Fill `into` with the bytes of `file` from `start` on."""
    rest = into.cast("B")
    while rest:
        count = os.preadv(file.fileno(), [rest], start)
        if not count:
            raise CoraxError(f"{file.name}: ends early, at byte {start}")
        rest, start = rest[count:], start + count
