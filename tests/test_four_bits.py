"""Weights through 4 bits and back: bit for bit what bitsandbytes makes of them."""

from pathlib import Path

import bitsandbytes.functional as bnb
import pytest
import tiny
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from corax.merge.four_bits import BLOCK, RoundTrip, largest_magnitudes
from corax.merge.quantisation import seen_in_training
from corax.merge.weights import read_header

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KINDS = ("normal", "zero", "constant", "negative", "one", "huge", "tiny", "denormal", "midpoints", "mixed")
TRAIN = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


def block(kind: str, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """64 weights of a kind that a quantiser may stumble over."""
    limits = torch.finfo(dtype)
    normal = torch.randn(BLOCK, generator=generator, dtype=torch.float64)
    signs = normal.sign()
    values = {
        "normal": 0.02 * normal,
        "zero": torch.zeros(BLOCK, dtype=torch.float64) * signs,
        "constant": torch.full_like(normal, 0.37),
        "negative": -normal.abs(),
        "one": torch.nn.functional.one_hot(torch.tensor(5), BLOCK) * 0.5,
        "huge": signs * limits.max * torch.rand(BLOCK, generator=generator, dtype=torch.float64),
        "tiny": signs * limits.tiny * (1 + torch.rand(BLOCK, generator=generator, dtype=torch.float64)),
        "denormal": normal * limits.tiny / 8,
        "midpoints": torch.cat([_midpoints(), torch.linspace(-1, 1, BLOCK - 15, dtype=torch.float64)]),
        "mixed": normal * 10.0 ** torch.linspace(-6, 2, BLOCK, dtype=torch.float64),
    }[kind]
    return values.clamp(limits.min, limits.max).to(dtype)


def largest_of(weight: torch.Tensor) -> torch.Tensor:
    """The largest magnitude of each block."""
    found = torch.empty(len(weight) // BLOCK, dtype=weight.dtype)
    integer = torch.int16 if weight.itemsize == 2 else torch.int32
    largest_magnitudes(weight.view(integer).numpy(), found.view(integer).numpy())
    return found


def _midpoints() -> torch.Tensor:
    values: torch.Tensor = bnb.get_4bit_type("nf4", device="cpu").sort().values
    return ((values[:-1] + values[1:]) / 2).double()


@settings(max_examples=60)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=12),
    repeat=st.integers(1, 40),
    dtype=st.sampled_from(sorted(DTYPES)),
    quant_type=st.sampled_from(["nf4", "fp4"]),
    double_quant=st.booleans(),
    seed=st.integers(0, 2**32),
)
@example(kinds=list(KINDS), repeat=1, dtype="float32", quant_type="nf4", double_quant=False, seed=0)
@example(kinds=["normal", "midpoints"], repeat=33, dtype="bfloat16", quant_type="fp4", double_quant=True, seed=1)
def test_equals_bitsandbytes(
    kinds: list[str], repeat: int, dtype: str, quant_type: str, double_quant: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.cat([block(kind, DTYPES[dtype], generator) for _ in range(repeat) for kind in kinds])
    packed, state = bnb.quantize_4bit(weight.view(-1, BLOCK), compress_statistics=double_quant, quant_type=quant_type)
    expected = bnb.dequantize_4bit(packed, state).view(-1)
    round_trip = RoundTrip(largest_of(weight), quant_type, double_quant)
    found = weight.clone()
    cut = BLOCK * (len(found) // BLOCK // 3)
    for first, part in ((0, found[:cut]), (cut, found[cut:])):
        round_trip.apply(part, first)
    # With double quantisation bitsandbytes takes a mean in float32, which is less exact and may overflow.
    if not double_quant or "huge" not in kinds:
        unit = max(2.0**-16, torch.finfo(weight.dtype).eps) * float(expected.abs().max())
        slack = unit if double_quant else 0.0
        torch.testing.assert_close(found, expected, rtol=0, atol=slack, equal_nan=True)


@pytest.mark.parametrize("shape", [(96, 64), (33, 96), (7, 10), (1, 64), (640, 1026)])
@pytest.mark.parametrize("compute", ["float32", "bfloat16", "float16"])
def test_any_shape_and_compute_type(
    shape: tuple[int, int], compute: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of matrices that are no whole number of blocks, whose rows end within blocks."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16)
    save_file({"w": weight}, tmp_path / "model.safetensors")
    monkeypatch.setattr("corax.merge.quantisation.quantised_weights", lambda model: ["w"])
    base = seen_in_training(tmp_path, TRAIN, DTYPES[compute])["w"](read_header(tmp_path / "model.safetensors")["w"])
    step = 64 if shape[0] > 64 else shape[0]
    found = torch.cat([base(weight[first : first + step].clone(), first) for first in range(0, shape[0], step)])
    packed, state = bnb.quantize_4bit(weight.to(DTYPES[compute]), compress_statistics=True, quant_type="nf4")
    rounding = {"rtol": 2.0**-20, "atol": 0} if compute == "float32" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(found, bnb.dequantize_4bit(packed, state), **rounding)


@pytest.mark.parametrize("exponent", [16, 127, 250])
def test_every_bfloat16_next_to_a_midpoint(exponent: int) -> None:
    """For each of the 128 largest magnitudes with this exponent: the numbers up to 3 units around each midpoint."""
    values = bnb.get_4bit_type("nf4", device="cpu").sort().values
    largest = ((exponent << 7) + torch.arange(128)).to(torch.int16).view(torch.bfloat16)
    middle = (largest.float()[:, None] * (values[:-1] + values[1:]) / 2).bfloat16().view(torch.int16)
    near = (middle[:, :, None] + torch.arange(-3, 4, dtype=torch.int16)).view(torch.bfloat16)
    # Blocks of 63 numbers and their largest.
    groups = torch.cat([near.reshape(128, 105), torch.zeros(128, 21, dtype=torch.bfloat16)], 1).view(128, 2, 63)
    weight = torch.cat([largest[:, None, None].expand(128, 2, 1), groups], 2).flatten()
    packed, state = bnb.quantize_4bit(weight.view(-1, BLOCK), compress_statistics=False, quant_type="nf4")
    expected = bnb.dequantize_4bit(packed, state).view(-1)
    round_trip = RoundTrip(largest_of(weight), "nf4", False)
    assert round_trip.bits is not None
    round_trip.apply(weight, 0)
    assert torch.equal(weight, expected)


def test_a_weight_that_is_not_finite_stays_so() -> None:
    weight = torch.ones(2 * BLOCK)
    weight[BLOCK + 3] = torch.nan
    RoundTrip(largest_of(weight), "nf4", False).apply(weight, 0)
    assert weight[:BLOCK].isfinite().all() and not weight[BLOCK:].isfinite().any()


def test_what_training_does_not_quantise_is_left_alone(tmp_path: Path) -> None:
    model = tiny.model_folder(tmp_path / "model", "chatml")
    names = set(seen_in_training(model, TRAIN, torch.float32))
    assert len(names) == 14
    assert not [name for name in names if "embed" in name or "head" in name or "norm" in name]
