"""base + scale · B·A: the right sums, the same bits for any cut of the rows, and on every machine."""

import os
import runpy
from pathlib import Path

import pytest
import stages
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from corax.errors import CoraxError
from corax.merge.memory import main_memory, weight_sizes
from corax.merge.sums import ROWS, Product
from corax.merge.weights import Factors, write_merged

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@settings(max_examples=60)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 1100),
    rank=st.integers(1, 33),
    bases=st.integers(1, 3),
    cut=st.integers(0, 20),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**32),
)
def test_any_shape_and_any_cut(
    rows: int, columns: int, rank: int, bases: int, cut: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    b, a, base = (torch.randn(shape, generator=generator) for shape in ((rows, rank), (rank, columns), (rows, columns)))
    weights = torch.stack([(base * (n + 1)).to(dtype) for n in range(bases)])
    product = Product.of(b, a, 0.7)
    whole = weights.clone()
    assert product.add_to(whole, 0)
    first = min(ROWS * cut, rows)
    parts = [weights[:, :first].clone(), weights[:, first:].clone()]
    assert all(product.add_to(part, start) for part, start in zip(parts, (0, first), strict=True) if part.numel())
    assert torch.equal(torch.cat(parts, 1), whole)
    exact = weights.double() + 0.7 * (b.double() @ a.double())
    sums = weights.abs().double() + 0.7 * (b.abs().double() @ a.abs().double())
    limit = (rank + 2) * 2.0**-24 * sums + torch.finfo(dtype).eps / 2 * exact.abs()
    assert ((whole.double() - exact).abs() <= limit).all()


def test_halves_are_rounded_to_even() -> None:
    weight = torch.tensor([[[1.0, 1.0 + 2**-7, 1.0, -1.0 - 2**-7]]]).bfloat16()
    half = torch.tensor([[2.0**-8, 2.0**-8, 2.0**-8 + 2.0**-20, -(2.0**-8)]])
    assert Product.of(torch.ones(1, 1), half, 1.0).add_to(weight, 0)
    assert weight.flatten().tolist() == [1.0, 1.0 + 2**-6, 1.0 + 2**-7, -1.0 - 2**-6]


@pytest.mark.parametrize("bits", [0x7F800000, 0x7FC00000, 0x7FFFFFFF, -1, -0x00800000, 0x7F7FFFFF])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_that_are_not_finite_are_an_error(bits: int, dtype: str, tmp_path: Path) -> None:
    """Infinity, any not-a-number, and float32's largest number, which 16 bits round to infinity."""
    value = torch.tensor([[bits]], dtype=torch.int32).view(torch.float32)
    if dtype == "F32" and value.isfinite():
        return
    for folder in ("model", "made"):
        (tmp_path / folder).mkdir()
    save_file({"w": torch.ones(70, 3, dtype=DTYPES[dtype])}, tmp_path / "model" / "model.safetensors")
    save_file({"a": torch.ones(1, 3), "b": torch.zeros(70, 1).index_copy(0, torch.tensor([69]), value)}, tmp_path / "l")
    with pytest.raises(CoraxError, match="l: w is not finite once the adapter is added"):
        write_merged(tmp_path / "model", tmp_path / "l", {"w": Factors("a", "b", 1.0)}, {tmp_path / "made": {}}, 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_bases_in_one_pass_are_those_of_two(dtype: str, tmp_path: Path) -> None:
    """Base "half" is each weight times a half, in float32."""
    generator = torch.Generator().manual_seed(0)
    weight, b, a = (torch.randn(shape, generator=generator) for shape in ((1000, 600), (1000, 5), (5, 600)))
    for folder in ("model", "plain", "half", "plain alone", "half alone"):
        (tmp_path / folder).mkdir()
    save_file({"w": weight.to(DTYPES[dtype]), "other": torch.arange(7)}, tmp_path / "model" / "model.safetensors")
    save_file({"a": a, "b": b}, tmp_path / "lora")
    bases = {"plain": {}, "half": {"w": lambda weight: lambda stored, first: stored.float() / 2}}
    for names in (("plain", "half"), ("plain",), ("half",)):
        outputs = {tmp_path / (name if len(names) == 2 else f"{name} alone"): bases[name] for name in names}
        write_merged(tmp_path / "model", tmp_path / "lora", {"w": Factors("a", "b", 0.5)}, outputs, 2)
    for name, part in (("plain", 1.0), ("half", 0.5)):
        together, alone = (tmp_path / folder / "model.safetensors" for folder in (name, f"{name} alone"))
        assert together.read_bytes() == alone.read_bytes()
        found = load_file(together)
        assert torch.equal(found["other"], torch.arange(7))
        expected = (weight.to(DTYPES[dtype]).double() * part + 0.5 * (b.double() @ a.double())).float()
        eps = torch.finfo(DTYPES[dtype]).eps
        torch.testing.assert_close(found["w"].float(), expected, rtol=0.51 * eps, atol=1e-5)


def test_a_system_that_reads_and_writes_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As near a full disk, or on a network's: what a call left over is read or written by the next."""
    for folder in ("model", "made", "made by parts"):
        (tmp_path / folder).mkdir()
    save_file({"w": torch.randn(70, 30), "other": torch.arange(999)}, tmp_path / "model" / "model.safetensors")
    save_file({"a": torch.randn(2, 30), "b": torch.randn(70, 2)}, tmp_path / "lora")

    def merged(folder: str) -> bytes:
        write_merged(tmp_path / "model", tmp_path / "lora", {"w": Factors("a", "b", 1.0)}, {tmp_path / folder: {}}, 2)
        return (tmp_path / folder / "model.safetensors").read_bytes()

    at_once, pwrite, preadv = merged("made"), os.pwrite, os.preadv
    monkeypatch.setattr("os.pwrite", lambda file, data, start: pwrite(file, data[:7], start))
    monkeypatch.setattr("os.preadv", lambda file, parts, start: preadv(file, [parts[0][:7]], start))
    assert merged("made by parts") == at_once


def test_the_same_bytes_on_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine's processor and libraries make has the digest that others found."""
    program = stages.REPOSITORY / "benchmarks" / "merge.py"
    monkeypatch.syspath_prepend(program.parent)
    benchmark = runpy.run_path(str(program))
    assert benchmark["compile_sums"]() == benchmark["DIGEST"]


def test_memory_of_the_job(tmp_path: Path) -> None:
    for name, gigabytes in (("1.safetensors", 5), ("2.safetensors", 5), ("3.safetensors", 6), ("tokenizer.json", 7)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(gigabytes * 10**9)  # a hole: it takes no space
    files, gpu = weight_sizes(tmp_path), 80 * 10**9
    program = main_memory([0], 0)
    assert main_memory(files, gpu) == program + 9 * 10**9
    assert main_memory(files, 0) == main_memory(files, 16 * 10**9) == program + 64 * 10**9
