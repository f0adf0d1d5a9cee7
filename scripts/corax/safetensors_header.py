"""The header of a safetensors file: what lies where in it, read without the numbers and without PyTorch.

The format: 8 bytes with the header's length (little endian), the header in JSON, the numbers
(https://huggingface.co/docs/safetensors).
"""

import json
from pathlib import Path
from typing import NamedTuple

from corax.errors import CoraxError

LONGEST = 100_000_000
"""Bytes; the format allows no more."""
MALFORMED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What reading JSON of an unexpected shape raises."""


class Tensor(NamedTuple):
    """A tensor of the file: `dtype` by its name in the format, such as BF16, and its bytes from `start` to `end`."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class Header(NamedTuple):
    """The tensors by name, and the bytes that the whole file has."""

    tensors: dict[str, Tensor]
    size: int


def read(path: Path) -> Header:
    """The header of a file; raises CoraxError if it is damaged, and OSError if it cannot be read."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= LONGEST else b""
    try:
        content = json.loads(text)
        content.pop("__metadata__", None)
        tensors = {}
        for name, entry in content.items():
            start, end = (8 + length + int(offset) for offset in entry["data_offsets"])
            tensors[name] = Tensor(str(entry["dtype"]), tuple(map(int, entry["shape"])), start, end)
    except MALFORMED:
        raise CoraxError(f"{path}: no valid safetensors file, its header is damaged") from None
    return Header(tensors, max((tensor.end for tensor in tensors.values()), default=8 + length))
