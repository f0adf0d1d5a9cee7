"""The memory that merging takes; free of torch, since the job is submitted by it too."""

from collections.abc import Sequence
from pathlib import Path

ROOM = 1.5
"""Free memory that a comparison takes of a GPU, in multiples of the weights' files: a merged model, the 4-bit base, and
what they compute."""
LARGEST_FILE = 1.5
"""Main memory where a GPU compares, in multiples of the largest file: models are loaded file by file."""
ON_CPU = 4
"""Main memory where the CPU compares, in multiples of the files: two models of 16 bits, in float32."""
PROGRAM = 6_000_000_000
"""Bytes for Python with its libraries, CUDA, and the logits of a long sample. Measured on a CPU: 0.6 GB and logits."""


def weight_sizes(model: Path) -> list[int]:
    """Bytes of each file of weights in the folder `model`."""
    return [file.stat().st_size for file in model.glob("*.safetensors")]


def fits(files: Sequence[int], gpu_memory: int) -> bool:
    """Whether models whose weights' files have the sizes `files` can be compared in so much GPU memory (bytes)."""
    return ROOM * sum(files) <= gpu_memory


def main_memory(files: Sequence[int], gpu_memory: int) -> int:
    """Bytes of main memory that the merge stage takes, with a GPU of so many bytes or none (0)."""
    models = LARGEST_FILE * max(files) if fits(files, gpu_memory) else ON_CPU * sum(files)
    return PROGRAM + round(models)
