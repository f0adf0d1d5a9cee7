"""The base as QLoRA training saw it: the linear layers of its blocks through 4 bits, all else as it is."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import numpy as np
import torch
from transformers import AutoConfig

from corax.errors import CoraxError
from corax.merge.four_bits import BLOCK, RoundTrip, largest_magnitudes
from corax.merge.pieces import read_at
from corax.merge.weights import PIECE, Base, Bases, Stored, read_header, read_tensor
from corax.model import model_class


def quantised_weights(model: Path) -> list[str]:
    """The names of the weights that `corax.model.load_quantised` quantises: all linear layers but the output head.

    Raises CoraxError if one of them is not stored under that name, as with experts that are kept as one tensor.
    """
    with torch.device("meta"):
        empty = model_class(model).from_config(AutoConfig.from_pretrained(str(model), local_files_only=True))
    head = empty.get_output_embeddings()
    modules = dict(empty.named_modules())
    plain = empty._keep_in_fp32_modules or ()  # which bitsandbytes leaves alone too: T5's wo
    names = [
        f"{name}.weight"
        for name, each in modules.items()
        if type(each) is torch.nn.Linear and each is not head and name.rpartition(".")[2] not in plain
    ]
    stored = {name for file in model.glob("*.safetensors") for name in read_header(file)}
    for name in names:
        if name not in stored:
            raise CoraxError(f"{model}: {name} is not stored as such; merge.base: nf4 cannot serve, allowed: original")
    return names


def seen_in_training(model: Path, train: Mapping[str, Any], compute_dtype: torch.dtype) -> Bases:
    """For each quantised weight of the folder `model` the function that gives what training multiplied with.

    `train` is the `train` section of the adapter's settings, `compute_dtype` the type that training loaded the base
    in: weights are rounded to it before and after they go through 4 bits.
    """
    quant_type, double = str(train["bnb_4bit_quant_type"]), bool(train["bnb_4bit_use_double_quant"])

    def by_rows(weight: Stored) -> Base:
        round_trip = RoundTrip(_largest(weight, compute_dtype), quant_type, double)

        def base(stored: torch.Tensor, first: int) -> torch.Tensor:
            rows = stored.to(compute_dtype)
            round_trip.apply(rows, first * weight.shape[1])
            return rows

        return base

    def whole(weight: Stored) -> Base:
        packed, state = bnb.quantize_4bit(
            read_tensor(weight).to(compute_dtype), compress_statistics=double, quant_type=quant_type
        )
        unpacked = bnb.dequantize_4bit(packed, state)
        return lambda stored, first: unpacked[first : first + len(stored)]

    def base(weight: Stored) -> Base:
        return by_rows(weight) if math.prod(weight.shape) % BLOCK == 0 else whole(weight)

    return dict.fromkeys(quantised_weights(model), base)


def _largest(weight: Stored, compute_dtype: torch.dtype) -> torch.Tensor:
    """The largest magnitude of each block of a weight in `compute_dtype`."""
    numbers, dtype = math.prod(weight.shape), weight.torch_dtype
    piece = np.empty(min(PIECE, numbers), f"i{dtype.itemsize}")
    found = np.empty(numbers // BLOCK, piece.dtype)
    with weight.file.open("rb") as file:
        for first in range(0, numbers, PIECE):
            part = piece[: numbers - first]
            read_at(file, weight.start + first * dtype.itemsize, part.data)
            largest_magnitudes(part, found[first // BLOCK :])
    # Rounding keeps the order of numbers: the largest one, rounded, is the largest of the rounded ones.
    return torch.from_numpy(found).view(dtype).to(compute_dtype)
