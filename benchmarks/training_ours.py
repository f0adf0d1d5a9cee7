"""This project's engines in benchmarks/training.py: in 80, 40 and 12 GB, one idea taken away at a time, loading."""

import resource
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from table import Row
from training_bench import GB, Bench
from training_kernels import profile
from training_model import Shape, lora, packs, random_model, reset_adapter, write_zeros
from training_table import IN_UNSLOTHS_MEMORY

from corax import hardware
from corax.model import load_quantised
from corax.train.adapter import add_adapter
from corax.train.fast import elementwise
from corax.train.fast.engine import FastEngine, place_embedding
from corax.train.general import GeneralEngine


def goals(bench: Bench) -> None:
    """The goals, the gradients against transformers and peft, and where the time goes."""
    model = random_model(bench.shape, bench.device)
    layers = bench.shape.layers

    def run(name: str, settings: str, kept: int, resident: bool) -> None:
        bench.time(name, settings, model, fast_engine(model, kept, resident).loss_sum)

    bench.limited(80)
    everything = "all activations kept, dequantised base kept"
    if not bench.attempt("80 GB", partial(run, "ours, 80 GB", everything, layers, True)):
        elementwise.COMPILED_ON.clear()
        bench.attempt("80 GB", partial(run, "ours, 80 GB", f"{everything}, nothing compiled", layers, True))
    for gigabytes, tried in ((40, (layers, layers * 7 // 8, layers * 3 // 4, layers // 2)), (12, (1, 0))):
        bench.limited(gigabytes)
        for kept in tried:
            text = f"activations of {kept} of {layers} layers kept"
            if bench.attempt(f"{gigabytes} GB", partial(run, f"ours, {gigabytes} GB", text, kept, False)):
                break
    bench.limited(80)
    bench.attempt("no activations", partial(run, IN_UNSLOTHS_MEMORY, "no activations kept", 0, False))
    bench.attempt("gradients", lambda: _compare_gradients(bench, model))
    engine = fast_engine(model, layers, True)
    bench.attempt("profile", lambda: profile(bench, model, engine))
    bench.attempt("deterministic", lambda: _deterministic(bench, model, engine))
    torch.use_deterministic_algorithms(False)


def fast_engine(model: Any, kept: int, resident: bool) -> FastEngine:
    """The fast engine as the train stage makes it."""
    place_embedding(model, kept)
    return FastEngine(model, kept, resident)


def _deterministic(bench: Bench, model: Any, engine: FastEngine) -> None:
    hardware.deterministic(0, 2, strict=bench.gpu)
    bench.time("ours, deterministic", "as at 80 GB, deterministic algorithms", model, engine.loss_sum)
    one, two = (_gradient(reset_adapter(model), engine, bench.packs[0], 0)[1] for _ in range(2))
    same = float(torch.equal(one, two))
    bench.report_rows(Row("gradients made twice are equal bit for bit", same, "1 is yes", at_least=1))


def _compare_gradients(bench: Bench, model: Any) -> None:
    """Cosine of the whole gradient, fast layers against transformers and peft, on the same short pack."""
    parameters = reset_adapter(model)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    shape = Shape(bench.shape.model, bench.shape.pack // 4, bench.shape.shrink, bench.shape.r)
    batch = next(packs(shape, 1))
    engines = fast_engine(model, bench.shape.layers, False), GeneralEngine(model)
    (ours, mine), (theirs, other) = (_gradient(parameters, engine, batch, None) for engine in engines)
    cosine = torch.nn.functional.cosine_similarity(mine.double(), other.double(), dim=0).item()
    bench.report_rows(
        Row("gradient: cosine", cosine, "", "transformers and peft", at_least=0.99),
        Row("loss: difference", abs(ours / theirs - 1), "of it", "the same", at_most=0.002),
    )


def _gradient(
    parameters: list[torch.nn.Parameter], engine: Any, batch: Any, seed: int | None
) -> tuple[float, torch.Tensor]:
    """(loss, gradient of all `parameters`), which are left without one."""
    loss = engine.loss_sum(batch, seed)
    loss.backward()
    gradient = torch.cat([parameter.grad.reshape(-1) for parameter in parameters if parameter.grad is not None])
    for parameter in parameters:
        parameter.grad = None
    return loss.item(), gradient


def general(bench: Bench) -> None:
    """Our path for other architectures."""
    model = random_model(bench.shape, bench.device)
    engine = GeneralEngine(model)
    settings = "transformers and peft, varlen"
    bench.attempt("general", lambda: bench.time("general path", settings, model, engine.loss_sum))
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    settings += ", checkpointing"
    bench.attempt("general", lambda: bench.time("general path, checkpointed", settings, model, engine.loss_sum))


def ablation(bench: Bench) -> None:
    """The ideas one by one, each taken away from ours at 80 GB."""
    layers = bench.shape.layers
    model = random_model(bench.shape, bench.device)

    def run(name: str, kept: int, resident: bool) -> None:
        engine = fast_engine(model, kept, resident)
        bench.attempt(name, lambda: bench.time(f"ours, {name}", "as at 80 GB but for this", model, engine.loss_sum))

    run("base dequantised at each use", layers, False)
    run("half of the activations kept", layers // 2, True)
    run("no activations kept", 0, True)
    compiled = set(elementwise.COMPILED_ON)
    elementwise.COMPILED_ON.clear()
    run("nothing compiled", layers, True)
    elementwise.COMPILED_ON.update(compiled)
    del model
    bench.free()
    model = random_model(bench.shape, bench.device, dropout=0.05)
    run("dropout 0.05", layers, True)


def load(bench: Bench) -> None:
    """Loading and quantising from safetensors, to the first step's end."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_zeros(bench.shape, folder)
        start = time.perf_counter()
        base = load_quantised(folder, bench.dtype, bench.device)
        loaded = time.perf_counter() - start
    anonymous = _anonymous()
    engine = FastEngine(add_adapter(base, lora(bench.shape), seed=0), bench.shape.layers, False)
    loss = engine.loss_sum(bench.packs[0], 0)
    loss.backward()  # type: ignore[no-untyped-call]
    loss.item()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB
    bench.report_rows(
        Row("load: quantised on the device", loaded, "s", "files in memory"),
        Row("load: to the first step's end", time.perf_counter() - start, "s", at_most=60),
        Row("load: own host memory", anonymous, "GB", "16 GB of weights", at_most=8),
        Row("load: peak of resident memory, files included", resident, "GB"),
    )


def _anonymous() -> float:
    """GB of this process's memory that no file backs, now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024 / GB
