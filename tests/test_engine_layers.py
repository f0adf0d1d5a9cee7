"""The fast layers, piece by piece and whole, against float64 autograd of the plain formulas."""

import shutil
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import bitsandbytes as bnb
import engine_models
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from corax.settings.lora import LoraSettings
from corax.train.attention import Documents, attend
from corax.train.fast import elementwise, head
from corax.train.fast.engine import FastEngine
from corax.train.fast.layer import DecoderLayer, Pack
from corax.train.fast.lora import Dropout, Projection
from corax.train.fast.quantised import QuantisedWeight
from corax.train.packs import flatten

LENGTHS = st.lists(st.integers(1, 13), min_size=1, max_size=5)
assert_close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
assert_close_float32 = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
"""For gradients of adapters, which are stored in float32."""


def doubles(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def widths(**limits: int) -> st.SearchStrategy[int]:
    return st.integers(1, limits.get("largest", 40))


@given(widths(), widths())
def test_rms_norm_and_its_gradient(tokens: int, width: int) -> None:
    x, weight, gradient, residual = (
        doubles(tokens, width),
        doubles(width),
        doubles(tokens, width),
        doubles(tokens, width),
    )
    x.requires_grad_()
    expected = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight
    (wanted,) = torch.autograd.grad(expected, x, gradient)
    found, dx = doubles(tokens, width), doubles(tokens, width)
    with torch.no_grad():
        elementwise.rms_norm(x, weight, 1e-5, found)
        again = elementwise.rms_norm_backward(x, weight, 1e-5, gradient, residual, dx)
    assert_close(found, expected)
    assert_close(again, expected)
    assert_close(dx, wanted + residual)


@given(widths(), widths())
def test_swiglu_and_its_gradient(tokens: int, width: int) -> None:
    gate_up, gradient = doubles(tokens, 2 * width).requires_grad_(), doubles(tokens, width)
    expected = functional.silu(gate_up[:, :width]) * gate_up[:, width:]
    (wanted,) = torch.autograd.grad(expected, gate_up, gradient)
    found, both = doubles(tokens, width), gate_up.detach().clone()
    with torch.no_grad():
        elementwise.swiglu(both, found)
        elementwise.swiglu_backward(both[:, :width], both[:, width:], gradient)
    assert_close(found, expected)
    assert_close(gradient, expected)
    assert_close(both, wanted)


@given(widths(), st.integers(1, 4), st.integers(1, 8))
def test_rotation_with_the_opposite_angle_is_its_gradient(tokens: int, heads: int, half: int) -> None:
    x, rotated, found = (doubles(tokens, heads, 2 * half) for _ in range(3))
    angles = doubles(tokens, half).repeat(1, 2)
    elementwise.rotate(x, angles.cos(), angles.sin(), rotated)
    turn = torch.polar(torch.ones(tokens, half).double(), angles[:, :half])[:, None]
    plane = torch.complex(x[..., :half], x[..., half:]) * turn
    assert_close(rotated, torch.cat((plane.real, plane.imag), -1))
    # A rotation is linear and orthogonal: its gradient is its inverse.
    elementwise.rotate(rotated, angles.cos(), -angles.sin(), found)
    assert_close(found, x)


def test_dropout_drops_its_share_and_repeats_itself() -> None:
    x = torch.ones(1000, 300)
    key = torch.tensor(-12345, dtype=torch.int32)
    found = elementwise.dropout(x, key, 0.05)
    assert torch.unique(found).tolist() == pytest.approx([0.0, 1 / 0.95])
    dropped = found == 0
    assert dropped.float().mean().item() == pytest.approx(0.05, abs=0.002)
    assert dropped.float().mean(0).max() < 0.1 and dropped.float().mean(1).max() < 0.12
    assert torch.equal(found[:77], elementwise.dropout(x[:77], key, 0.05))
    other = elementwise.dropout(x, key + 1, 0.05) == 0
    assert (dropped & other).float().mean().item() == pytest.approx(0.0025, abs=0.0005)


@settings(max_examples=20)
@given(
    st.integers(1, 5).map(lambda blocks: 64 * blocks),
    st.integers(1, 40),
    st.booleans(),
    st.sampled_from(["nf4", "fp4"]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_dequantised_values_are_those_of_bitsandbytes(
    columns: int, rows: int, double_quant: bool, kind: str, dtype: torch.dtype
) -> None:
    weight = torch.randn(rows, columns).to(dtype)
    packed, state = bnb.functional.quantize_4bit(weight, compress_statistics=double_quant, quant_type=kind)
    parameter = bnb.nn.Params4bit(packed, quant_state=state, requires_grad=False)
    out = torch.full((rows, columns + 3), 7.0, dtype=dtype)
    QuantisedWeight(parameter).write(out[:, :columns])
    assert torch.equal(out[:, :columns], bnb.functional.dequantize_4bit(packed, state))
    assert (out[:, columns:] == 7).all()


@given(st.integers(1, 60), st.integers(1, 9))
def test_loss_of_the_head_and_its_gradient(rows: int, chunk: int) -> None:
    hidden, norm, weight = doubles(rows, 8).requires_grad_(), doubles(8), doubles(30, 8)
    targets = torch.randint(0, 30, (rows,))
    normal = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + 1e-5) * norm
    expected = functional.cross_entropy(normal @ weight.t(), targets, reduction="sum")
    (wanted,) = torch.autograd.grad(expected / 7, hidden)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "LOSS_ROWS", chunk)
        found: Any = head.HeadLoss.apply(hidden, norm, 1e-5, weight, targets)  # type: ignore[no-untyped-call]
    (gradient,) = torch.autograd.grad(found / 7, hidden)
    assert_close(found, expected)
    assert_close(gradient, wanted)


@given(LENGTHS, st.sampled_from([None, 1, 3, 100]))
def test_attention_stays_inside_documents_and_window(lengths: list[int], window: int | None) -> None:
    tokens = sum(lengths)
    query, key, value = doubles(tokens, 4, 8), doubles(tokens, 2, 8), doubles(tokens, 2, 8)
    positions = torch.cat([torch.arange(length) for length in lengths])
    documents = Documents.from_positions(positions[None], torch.device("cpu"))
    assert documents.lengths == lengths
    assert documents.boundaries.tolist() == [sum(lengths[:n]) for n in range(len(lengths) + 1)]
    number = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    distance = positions[:, None] - positions
    seen = (number[:, None] == number) & (distance >= 0) & (distance < (window or tokens))
    scores = torch.einsum("qhd,khd->hqk", query, key.repeat_interleave(2, 1)) * 0.3
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    expected = torch.einsum("hqk,khd->qhd", weights, value.repeat_interleave(2, 1))
    assert_close(attend(query, key, value, documents, 0.3, window), expected)


@cache
def model(family: str) -> Any:
    """A tiny model of `family` with everything but its 4-bit weights and adapters in float64."""
    lora = LoraSettings(r=3, lora_alpha=7.0, lora_dropout=0.3)
    return engine_models.widened(engine_models.quantised(Path(mkdtemp()), family, lora))


def plain_projection(projection: Projection, x: torch.Tensor, drop: Dropout | None) -> torch.Tensor:
    """Σ x Wᵀ + bias + scale · dropout(x) Aᵀ Bᵀ of each layer, side by side."""
    mask = torch.ones_like(x) if drop is None else elementwise.dropout(torch.ones_like(x), drop.key, drop.probability)
    outputs = []
    for weight, a, b in zip(projection.weights, projection.a, projection.b, strict=True):
        values = bnb.functional.dequantize_4bit(weight.packed.reshape(-1, 1), weight.state).double()
        outputs.append(x @ values.t() + projection.scale * (x * mask) @ a.double().t() @ b.double().t())
    result = torch.cat(outputs, dim=1)
    return result if projection.bias is None else result + projection.bias


def plain_layer(layer: DecoderLayer, x: torch.Tensor, pack: Pack) -> torch.Tensor:
    """The layer as the papers have it, with autograd's gradients."""

    def norm(value: torch.Tensor, module: Any) -> torch.Tensor:
        weight: torch.Tensor = module.weight
        return value * torch.rsqrt(value.square().mean(-1, keepdim=True) + layer.eps) * weight

    def rotated(value: torch.Tensor) -> torch.Tensor:
        first, second = value.chunk(2, -1)
        return value * pack.cos[:, None] + torch.cat((-second, first), -1) * pack.sin[:, None]

    drops = [pack.dropout(4 * layer.number + place) for place in range(4)]
    tokens, size = len(x), layer.head_size
    qkv = plain_projection(layer.qkv, norm(x, layer.norm), drops[0]).view(tokens, -1, size)
    query, key, value = torch.split(qkv, [layer.queries, layer.groups, layer.groups], dim=1)
    attended = attend(rotated(query), rotated(key), value, pack.documents, layer.scale).flatten(1)
    if layer.last:
        x, attended = x[pack.predicts], attended[pack.predicts]
    middle = x + plain_projection(layer.out, attended, drops[1])
    gate, up = plain_projection(layer.gate_up, norm(middle, layer.middle_norm), drops[2]).chunk(2, -1)
    return middle + plain_projection(layer.down, functional.silu(gate) * up, drops[3])


@settings(max_examples=30)
@given(
    st.sampled_from(["llama", "qwen2", "phi3"]),
    LENGTHS,
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**31 - 1),
)
def test_layer_gradients(
    family: str, lengths: list[int], kept: bool, resident: bool, last: bool, dropout: bool, key: int
) -> None:
    inner = model(family).get_base_model().model
    layer = DecoderLayer(inner.layers[1], 1, torch.float64, kept=kept, resident=resident, last=last)
    torch.manual_seed(key)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    x = doubles(sum(lengths), 64).requires_grad_()
    cos, sin = inner.rotary_emb(x, position_ids=positions)
    keys = torch.randint(-(2**31), 2**31 - 1, (8,), dtype=torch.int32)
    documents = Documents.from_positions(positions, torch.device("cpu"))
    drops = [Dropout(0.3, key) if dropout else None for key in keys]
    predicts = torch.randperm(len(x))[: 1 + len(x) // 2].sort().values
    pack = Pack(cos[0], sin[0], documents, drops.__getitem__, predicts)
    expected, found = plain_layer(layer, x, pack), layer(x, pack)
    assert_close(found, expected)
    gradient = torch.randn_like(expected)
    inputs = [x, *layer.parameters]
    wanted = torch.autograd.grad(expected, inputs, gradient)
    (dx, *of_parameters) = torch.autograd.grad(found, inputs, gradient)
    assert_close(dx, wanted[0])
    for mine, plain in zip(of_parameters, wanted[1:], strict=True):
        assert_close_float32(mine, plain)


def test_resident_weights_follow_the_adapter() -> None:
    engine = FastEngine(model("llama"), kept=3, resident=True)
    projection = engine.layers[0].qkv
    x = functional.pad(doubles(5, 64), (0, projection.rank))
    projection.lower(x, None)
    before = projection.product(x)
    with torch.no_grad():
        projection.b[1].add_(0.1)
    after = projection.product(x)
    with torch.no_grad():
        projection.b[1].sub_(0.1)
    changed = (before != after).any(0)
    assert changed.tolist() == [False] * 64 + [True] * 32 + [False] * 32


@pytest.fixture
def compiled_on_cpu() -> Iterator[None]:
    """Compile as on a GPU; needs a C++ compiler."""
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    devices = set(elementwise.COMPILED_ON)
    yield
    elementwise.COMPILED_ON.clear()
    elementwise.COMPILED_ON.update(devices)


def test_compiled_layers_agree_and_serve_every_length(compiled_on_cpu: None) -> None:
    """About 20 s of compiling."""
    engine, graphs = FastEngine(model("llama"), kept=1, resident=False), []
    for lengths in ((9, 20), (31, 6)):
        batch = flatten([(np.arange(1, length + 1, dtype=np.uint32), np.arange(1, length)) for length in lengths])
        results = []
        for devices in ({"cpu"}, set()):
            elementwise.COMPILED_ON.clear()
            elementwise.COMPILED_ON.update(devices)
            engine.model.zero_grad()
            loss = engine.loss_sum(batch, 5)
            loss.backward()  # type: ignore[no-untyped-call]
            results.append((loss.item(), engine_models.gradients(engine.model)))
        torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] > 0
