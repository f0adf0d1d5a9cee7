"""Tensors that may be divided over the ranks by rows, and safetensors files that hold them whole.

A divided tensor is PyTorch's DTensor with placement Shard(0): each of n ranks has ⌈rows / n⌉ of them, the last ones
fewer or none. A file is the same whatever the number of ranks: tensors are gathered and written one at a time, and
each rank reads its own rows.
"""

import json
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from torch.distributed.tensor import DTensor

Share = tuple[int, int]
"""(rank, number of ranks) that rows are divided by."""
ALL: Share = (0, 1)

DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.uint8: "U8",
}
"""Names of the types in the safetensors format."""
ALIGNMENT = 8
"""Bytes; the header is padded so that the tensors begin at a multiple of it."""


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's rows of a divided tensor, in the same memory; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A divided tensor gathered, which all ranks must ask for; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def divided(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`rows` of this rank as a tensor that is divided as `like` is; if that is not, `rows` as they are."""
    if not isinstance(like, DTensor):
        return rows
    result = torch.empty_like(like, dtype=rows.dtype)
    local(result).copy_(rows)
    return result


class Divided(Mapping[str, torch.Tensor]):
    """`rows` of this rank by name, `divided` as those in `like`, each when it is asked for."""

    def __init__(self, rows: Mapping[str, torch.Tensor], like: Mapping[str, torch.Tensor]) -> None:
        self.rows, self.like = rows, like

    def __getitem__(self, name: str) -> torch.Tensor:
        return divided(self.rows[name], self.like[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def gather(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None) -> Iterator[torch.Tensor]:
    """Each of `tensors` as a whole, in the type `dtype` where one is given; all ranks must take them all."""
    for name in tensors:
        yield whole(tensors[name].detach().to(dtype or tensors[name].dtype))


def write(path: Path, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None) -> None:
    """Write `tensors` into a safetensors file, one at a time; the other ranks take part with `gather`."""
    with path.open("wb") as file:
        write_header(file, tensors, dtype)
        for tensor in gather(tensors, dtype):
            file.write(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)


def write_header(file: BinaryIO, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None) -> int:
    """Write what comes before the numbers of `tensors` in a safetensors file; returns the bytes of these numbers.

    The format: 8 bytes with the header's length, the header in JSON, the numbers
    (https://huggingface.co/docs/safetensors).
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        kind = dtype or tensor.dtype
        start, end = end, end + prod(tensor.shape) * kind.itemsize
        header[name] = {"dtype": DTYPES[kind], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    return end


def read(path: Path, share: Share = ALL) -> dict[str, torch.Tensor]:
    """The rows of each tensor in a safetensors file that belong to `share`; numbers without rows as they are."""
    with safe_open(path, framework="pt") as file:
        return {name: read_rows(file, name, share) for name in file.keys()}  # noqa: SIM118 - it is no mapping


def read_rows(file: Any, name: str, share: Share) -> torch.Tensor:
    """The rows of one tensor of an open safetensors file that belong to `share`."""
    content = file.get_slice(name)
    shape = content.get_shape()
    rank, ranks = share
    size = -(-shape[0] // ranks) if shape else 0
    rows: torch.Tensor = content[rank * size : (rank + 1) * size] if shape else file.get_tensor(name)
    return rows
