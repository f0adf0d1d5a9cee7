"""Writing merged weights: base + scale · B·A, summed in float32 and rounded once to the type of the base.

A merged model has the same tensors, shapes and types as its base, so every safetensors file keeps its header and its
layout. Threads take a piece each: read it, change it while it is in the processor's cache, and write it to its place.
So memory holds a few pieces, whatever the model's size. Several bases are read, and multiplied for, once.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from corax import safetensors_header
from corax.errors import CoraxError
from corax.merge.pieces import Output, read_at
from corax.merge.sums import ROWS, Product
from corax.progress import Progress

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of weights that can be changed, by their safetensors names."""
PIECE = 2**20
"""Numbers that a thread holds at a time: few enough for the caches, so many that Python's lock hardly counts."""
WHOLE_BLOCKS = 64
"""Pieces hold a multiple of so many numbers: blocks that 4 bits share are not cut."""
WAITING = 4
"""Pieces for each thread that are under way or wait."""

Base = Callable[[torch.Tensor, int], torch.Tensor]
"""From stored rows of a weight and the number of the first to these rows as training saw them; may overwrite them."""


@dataclass(frozen=True)
class Factors:
    """The names of A (r × in) and B (out × r) in an adapter's file, and the scale of their product."""

    a: str
    b: str
    scale: float


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file: `dtype` by its safetensors name, `start` and `size` in bytes."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type of a weight; raises CoraxError if it is not in `DTYPES`."""
        if self.dtype not in DTYPES:
            raise CoraxError(f"{self.file}: {self.name} has the type {self.dtype}, allowed: {', '.join(DTYPES)}")
        return DTYPES[self.dtype]


Bases = Mapping[str, Callable[[Stored], Base]]
"""By name, the weights whose product is added to another base than what is stored."""


def read_header(file: Path) -> dict[str, Stored]:
    """The tensors in a safetensors file by name; raises CoraxError if it is missing or damaged."""
    try:
        with safe_open(file, framework="pt"):  # which checks all of the header against the file
            tensors = safetensors_header.read(file).tensors
    except FileNotFoundError:
        raise CoraxError(f"{file}: missing") from None
    except SafetensorError as error:
        raise CoraxError(f"{file}: no valid safetensors file: {error}") from None
    return {
        name: Stored(name, file, tensor.dtype, tensor.shape, tensor.start, tensor.end - tensor.start)
        for name, tensor in tensors.items()
    }


def read_tensor(tensor: Stored) -> torch.Tensor:
    """The tensor, in memory of its own; raises CoraxError if its type is not in `DTYPES`."""
    content = np.empty(tensor.size, np.uint8)
    with tensor.file.open("rb") as file:
        read_at(file, tensor.start, content.data)
    return torch.from_numpy(content).view(tensor.torch_dtype).view(tensor.shape)


def write_merged(
    model: Path,
    lora: Path,
    factors: Mapping[str, Factors],
    outputs: Mapping[Path, Bases],
    threads: int,
) -> None:
    """Write the weights of the folder `model`, plus the product of each pair of `factors`, to each folder of `outputs`.

    The factors lie in the file `lora`. Raises CoraxError if a changed weight has no type of `DTYPES` or is not finite.
    """
    files = {
        file: sorted(read_header(file).values(), key=lambda tensor: tensor.start)
        for file in sorted(model.glob("*.safetensors"))
    }
    tensors = [tensor for stored in files.values() for tensor in stored]
    changing = {*factors}.union(*outputs.values())
    changed = [tensor for tensor in tensors if tensor.name in changing]
    adapter = read_header(lora)
    numbers = PIECE // len(outputs)
    most = max((_rows(tensor, numbers) * tensor.shape[1] for tensor in changed), default=0)
    buffer = Buffer(4 * max(PIECE, len(outputs) * most))

    def prepare(tensor: Stored) -> Change:
        bases = [seen[tensor.name](tensor) if tensor.name in seen else None for seen in outputs.values()]
        if tensor.name not in factors:
            return Change(tensor, bases, None, lora)
        pair = factors[tensor.name]
        b, a = (read_tensor(adapter[name]) for name in (pair.b, pair.a))
        return Change(tensor, bases, Product.of(b, a, pair.scale), lora)

    with ExitStack() as stack, Progress("merge", total=len(tensors), unit="tensor") as progress:
        streams = [
            Stream(
                stack.enter_context(file.open("rb")),
                [stack.enter_context(Output(folder / file.name)) for folder in outputs],
                buffer,
            )
            for file in files
        ]
        # These threads are all that compute: torch starts none of its own in them.
        pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        stack.callback(pool.shutdown, cancel_futures=True)
        changes = _ahead(pool, prepare, changed, threads)
        running: deque[Future[None]] = deque()
        for stream, stored in zip(streams, files.values(), strict=True):
            stream.copy_header(stored)
            for tensor in stored:
                for work in stream.pieces(tensor, next(changes) if tensor.name in changing else None):
                    running.append(pool.submit(*work))
                    if len(running) > WAITING * threads:
                        running.popleft().result()
                progress.advance()
        for piece in running:
            piece.result()


class Buffer(threading.local):
    """Memory of a thread for a piece of each output."""

    def __init__(self, size: int) -> None:
        self.bytes: NDArray[np.uint8] = np.empty(size, np.uint8)


@dataclass(frozen=True)
class Change:
    """What becomes of a weight: the product is added to each of `bases`, None for what is stored."""

    tensor: Stored
    bases: list[Base | None]
    product: Product | None
    lora: Path

    def apply(self, copies: torch.Tensor, first: int) -> None:
        """Replace `copies` (bases × rows × columns) of the stored rows from number `first` on."""
        bases = [base(rows, first) if base else rows for rows, base in zip(copies, self.bases, strict=True)]
        if all(base.dtype == copies.dtype == torch.bfloat16 for base in bases):
            for rows, base in zip(copies, bases, strict=True):
                if base.data_ptr() != rows.data_ptr():
                    rows.copy_(base)
            finite = self._add(copies, first)
        else:
            sums = torch.stack([base.float() for base in bases])
            self._add(sums, first)
            finite = bool(copies.copy_(sums).isfinite().all())
        if not finite:
            raise CoraxError(f"{self.lora}: {self.tensor.name} is not finite once the adapter is added")

    def _add(self, bases: torch.Tensor, first: int) -> bool:
        return self.product.add_to(bases, first) if self.product else bool(bases.isfinite().all())


def _rows(tensor: Stored, numbers: int) -> int:
    """Rows of a weight to change at a time: about so many numbers, whole blocks and steps of a product."""
    columns = tensor.shape[1]
    unit = max(ROWS, WHOLE_BLOCKS // math.gcd(WHOLE_BLOCKS, columns))
    return min(tensor.shape[0], max(unit, numbers // columns // unit * unit))


def _ahead(
    pool: ThreadPoolExecutor, prepare: Callable[[Stored], Change], tensors: list[Stored], count: int
) -> Iterator[Future[Change]]:
    """The change of each tensor, those of the next `count` begun before it is taken: so threads hardly wait for one."""
    waiting: deque[Future[Change]] = deque()
    for tensor in tensors:
        waiting.append(pool.submit(prepare, tensor))
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


@dataclass(frozen=True)
class Stream:
    """A file of the base and what is made of it, one for each base."""

    source: BinaryIO
    made: list[Output]
    buffer: Buffer

    def copy_header(self, stored: list[Stored]) -> None:
        """Copy what comes before the tensors."""
        header = self.source.read(stored[0].start if stored else -1)
        for output in self.made:
            output.write_at(0, header)

    def pieces(self, tensor: Stored, change: Future[Change] | None) -> Iterator[tuple[Any, ...]]:
        """What threads do for the pieces of a tensor, in order."""
        if change is None:
            size = PIECE * 4
            for first in range(0, tensor.size, size):
                yield self.copy, tensor.start + first, min(size, tensor.size - first)
        else:
            step = _rows(tensor, PIECE // len(self.made))
            for first in range(0, tensor.shape[0], step):
                yield self.change, change, first, min(step, tensor.shape[0] - first)

    def copy(self, start: int, size: int) -> None:
        """Bytes that stay as they are."""
        piece = self.buffer.bytes[:size]
        read_at(self.source, start, piece.data)
        for output in self.made:
            output.write_at(start, piece.data)

    def change(self, change: Future[Change], first: int, count: int) -> None:
        """The `count` rows from `first` on of a changed weight."""
        ready = change.result()
        tensor, columns = ready.tensor, ready.tensor.shape[1]
        dtype, numbers = tensor.torch_dtype, count * columns
        start, size = tensor.start + first * columns * dtype.itemsize, numbers * dtype.itemsize
        copies = self.buffer.bytes[: len(self.made) * size].view(f"i{dtype.itemsize}").reshape(-1, count, columns)
        read_at(self.source, start, copies[0].data)
        copies[1:] = copies[0]
        ready.apply(torch.from_numpy(copies).view(dtype), first)
        for output, piece in zip(self.made, copies, strict=True):
            output.write_at(start, piece.data)
