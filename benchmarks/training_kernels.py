"""Where a training step's time goes: its kernels by kind, and single products and kernels of a layer by themselves."""

import time
from collections.abc import Callable
from typing import Any

import bitsandbytes as bnb
import torch
from table import Row
from torch.profiler import ProfilerActivity
from training_bench import GB, Bench
from training_model import reset_adapter

from corax.train.fast import elementwise
from corax.train.fast.quantised import QuantisedWeight

KINDS = (
    ("attention", ("flash", "fmha")),
    ("compiled elementwise", ("triton",)),
    ("optimizer", ("multi_tensor", "adam", "lpnorm")),
    ("matrix products", ("gemm", "nvjet", "cutlass", "splitk", "cublas", "mm")),
    ("copies and fills", ("copy", "memcpy", "memset", "fill", "cat")),
)
"""Kinds of kernels by words in their names; the first that fits counts."""


def profile(bench: Bench, model: Any, engine: Any) -> None:
    """Milliseconds of a step by kind of kernel."""
    parameters = reset_adapter(model)
    optimizer = torch.optim.AdamW(parameters, fused=bench.gpu)
    activity = ProfilerActivity.CUDA if bench.gpu else ProfilerActivity.CPU

    def step() -> None:
        optimizer.zero_grad()
        (engine.loss_sum(bench.packs[0], 0) / 1000).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    step()
    with torch.profiler.profile(activities=[activity]) as profiler:
        step()
        if bench.gpu:
            torch.cuda.synchronize()
    times: dict[str, float] = {}
    events = sorted(profiler.key_averages(), key=lambda event: -_self_time(event, bench.gpu))
    for event in events:
        times[_kind(event.key)] = times.get(_kind(event.key), 0.0) + _self_time(event, bench.gpu) / 1000
    for event in events[:40]:
        print(f"    {_self_time(event, bench.gpu) / 1000:8.2f} ms {event.count:5d} × {event.key[:110]}", flush=True)
    if bench.gpu:
        spans = [event.time_range for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        times["nothing"] = (max(span.end for span in spans) - min(span.start for span in spans)) / 1000
        times["nothing"] -= sum(span.elapsed_us() for span in spans) / 1000
    bench.report_rows(*(Row(f"profile: {kind}", value, "ms") for kind, value in times.items()))


def _self_time(event: Any, gpu: bool) -> float:
    return float(event.self_device_time_total if gpu else event.self_cpu_time_total)


def _kind(name: str) -> str:
    found = (kind for kind, words in KINDS if any(word in name.lower() for word in words))
    return next(found, "other")


def parts(bench: Bench) -> None:
    """Single products and kernels of a layer, in milliseconds, to see what each costs and what else would."""
    sizes, tokens = bench.shape.model, bench.shape.pack
    rows: list[Row] = []
    width, inner, r = sizes["hidden_size"], sizes["intermediate_size"], bench.shape.r
    head = width // sizes["num_attention_heads"]
    key_value = head * sizes["num_key_value_heads"]

    def add(name: str, work: Callable[[], Any], gigabytes: float = 0.0) -> None:
        milliseconds = _milliseconds(work, bench.gpu)
        speed = f"{gigabytes / milliseconds * 1000:,.0f} GB/s" if gigabytes else ""
        rows.append(Row(name, milliseconds, "ms", speed))
        print(f"    {milliseconds:8.3f} ms {name} {speed}", flush=True)

    def random(*size: int) -> Any:
        return torch.randn(size, dtype=bench.dtype, device=bench.device)

    shapes = {
        "qkv": (width + 2 * key_value, width, 3),
        "out": (width, width, 1),
        "gate_up": (2 * inner, width, 2),
        "down": (width, inner, 1),
    }
    with torch.no_grad():
        for name, (out, columns, count) in shapes.items():
            low = count * r
            x, both, a = random(tokens, columns + low), random(out, columns + low), random(low, columns)
            inputs, weight, b = x[:, :columns].contiguous(), both[:, :columns].contiguous(), random(out, low)
            dy, dlow = random(tokens, out), random(tokens, low)
            add(f"{name}: x Wᵀ", lambda x=inputs, w=weight: x @ w.t())
            add(f"{name}: [x | low] [W | B]ᵀ", lambda x=x, w=both: x @ w.t())
            add(
                f"{name}: x Wᵀ, then low Bᵀ",
                lambda x=inputs, w=weight, low=dlow, b=b: (x @ w.t()).addmm_(low, b.t()),
            )
            add(f"{name}: low = x Aᵀ", lambda x=inputs, a=a: x @ a.t())
            add(f"{name}: dy W", lambda dy=dy, w=weight: dy @ w)
            add(f"{name}: dy [W | B]", lambda dy=dy, w=both: dy @ w)
            dx = (dy @ both)[:, :columns]
            add(f"{name}: dx += dlow A", lambda dx=dx, low=dlow, a=a: dx.addmm_(low, a))
            wide, stack = random(tokens, out + low), random(out + low, columns + low)
            add(f"{name}: [dy | dlow] [W ; A]", lambda dy=wide, w=stack[:, :columns]: dy @ w)
            add(f"{name}: dlow = dy B", lambda low=wide[:, out:], dy=dy, b=b: low.addmm_(dy, b, beta=0, alpha=2.0))
            add(f"{name}: dA", lambda x=inputs, low=dlow: low.t() @ x)
            add(f"{name}: dB (one stack)", lambda dy=dy, low=dlow: dy.t() @ low)
            if bench.gpu:
                add(f"{name}: dB in float32", lambda dy=dy, low=dlow: torch.mm(dy.t(), low, out_dtype=torch.float32))
            del x, both, a, inputs, weight, b, dy, dlow, dx, wide, stack
            bench.free()
        x, gate_up, norm = random(tokens, width), random(tokens, 2 * inner), random(width)
        act, number = random(tokens, inner + r), x.element_size() * tokens / GB
        wide = random(tokens, width + 2 * r)[:, :width]
        add("rms_norm", lambda: elementwise.rms_norm(x, norm, 1e-5, wide), 2 * width * number)
        add("rms_norm_backward", lambda: elementwise.rms_norm_backward(x, norm, 1e-5, x, x, wide), 5 * width * number)
        add("swiglu", lambda: elementwise.swiglu(gate_up, act[:, :inner]), 3 * inner * number)
        halves, gradient = gate_up.chunk(2, dim=1), random(tokens, inner)
        add("swiglu_backward", lambda: elementwise.swiglu_backward(*halves, gradient), 6 * inner * number)
        heads, angle = random(tokens, width // head, head), random(tokens, head)
        turned = torch.empty_like(heads)
        add("rotate", lambda: elementwise.rotate(heads, angle, angle, turned), 2 * width * number)
        add("copy", lambda: elementwise.copy(x, wide), 2 * width * number)
        seed = torch.tensor(7, dtype=torch.int32, device=bench.device)
        add("dropout", lambda: elementwise.dropout(x, seed, 0.05), 2 * width * number)
        packed, state = bnb.functional.quantize_4bit(random(inner, width), compress_statistics=True, quant_type="nf4")
        quantised = QuantisedWeight(bnb.nn.Params4bit(packed, quant_state=state, requires_grad=False))
        target = random(inner, width + r)
        size = 2.5 * inner * width / GB
        add("dequantise", lambda: quantised.write(target[:, :width]), size)
        add("dequantise, bitsandbytes", lambda: bnb.functional.dequantize_4bit(packed, state), size)
        difference = (target[:, :width].float() - bnb.functional.dequantize_4bit(packed, state).float()).abs()
        unit = f"of {difference.numel():,}, by up to {difference.max():.2g}"
        wrong = float((difference > 0).sum())
        rows.append(Row("dequantised values that are not bitsandbytes'", wrong, unit, at_most=0))
        logits, wanted = random(tokens // 4, sizes["vocab_size"]), torch.zeros(tokens // 4, 1, dtype=torch.int64)
        wanted = wanted.to(bench.device)
        add("cross_entropy", lambda: elementwise.cross_entropy(logits, wanted), 3 * logits.numel() * 2 / GB)
    bench.report_rows(*rows)


def _milliseconds(work: Callable[[], Any], gpu: bool, times: int = 10) -> float:
    for _ in range(3):
        work()
    if gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(times):
        work()
    if gpu:
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start) / times
