"""The training step against the usual script and, where installed, Unsloth and TRL: speed, memory, first losses.

    python benchmarks/training.py                       (one GPU; make bench-training)
    python benchmarks/training.py --tiny --output /tmp/x    (every line of it on a CPU, in a minute)

Random weights of Llama-3-8B's shape in NF4, LoRA r = 64 on all linear layers, packs of 8192 tokens of simulated
quantum experiments (lengths: quantum_lengths.json, mean 488). A step is one pack with AdamW, the median of several
after warm-up. Each group of cases runs in a process of its own with a time limit, so that one failure loses no other.
"""

import argparse
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

GB = 10**9
HERE = Path(__file__).parent
GROUPS = ("ours", "usual", "unsloth", "trl", "parts", "ablation", "general", "load")
"""In order of value: what comes late is left out when time is short."""
IN_UNSLOTHS_MEMORY = "ours, Unsloth's memory"
RESULTS = "training.jsonl"
"""What each group wrote, as it came."""
SCRATCH = "/tmp/corax-training"  # noqa: S108
ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "HF_HUB_OFFLINE": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "TRITON_CACHE_DIR": f"{SCRATCH}/triton",
    "TORCHINDUCTOR_CACHE_DIR": f"{SCRATCH}/inductor",
    "UNSLOTH_COMPILE_LOCATION": f"{SCRATCH}/unsloth",
}


@dataclass(frozen=True)
class Shape:
    """A model's sizes and a pack's, and how many steps are timed."""

    model: dict[str, int]
    pack: int
    shrink: int
    r: int
    warmup: int = 3
    steps: int = 8


HEADS = {"num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32}
LLAMA = Shape(
    {"hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 8192, **HEADS},
    pack=8192,
    shrink=1,
    r=64,
)
TINY = Shape(
    {
        "hidden_size": 64,
        "intermediate_size": 192,
        "vocab_size": 300,
        "max_position_embeddings": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 3,
    },
    pack=256,
    shrink=16,
    r=4,
    warmup=1,
    steps=2,
)


def main() -> None:
    """Run all groups, then write the table."""
    args = _parser().parse_args()
    if args.group:
        _child(args)
        return
    args.output.mkdir(parents=True, exist_ok=True)
    results = args.output / RESULTS
    results.unlink(missing_ok=True)
    start = time.monotonic()
    for group in args.groups.split(","):
        left = args.seconds - (time.monotonic() - start)
        if left < 30:
            print(f"{group}: left out, no time", flush=True)
            continue
        command = [sys.executable, __file__, "--group", group, "--output", str(args.output)]
        environment = {**os.environ, **ENVIRONMENT}
        try:
            done = subprocess.run(command + ["--tiny"] * args.tiny, timeout=min(left, args.limit), env=environment)
            print(f"{group}: ended with {done.returncode} after {time.monotonic() - start:.0f} s", flush=True)
        except subprocess.TimeoutExpired:
            print(f"{group}: stopped, out of time", flush=True)
    if results.is_file():
        _write([json.loads(line) for line in results.read_text().splitlines()], args.output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder for training.json")
    parser.add_argument("--groups", default=",".join(GROUPS), help="which groups, in which order")
    parser.add_argument("--group", choices=GROUPS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=1800, help="time for all groups")
    parser.add_argument("--limit", type=float, default=600, help="time for one group")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the program")
    return parser


def _write(results: list[dict[str, Any]], folder: Path) -> None:
    from table import Row, write

    speed = {row["name"]: row for row in results if "tokens_per_second" in row}
    goals = {"ours, 80 GB": (18_000, 80), "ours, 40 GB": (15_500, 40), "ours, 12 GB": (12_000, 12)}
    if "Unsloth" in speed:
        goals[IN_UNSLOTHS_MEMORY] = (1.1 * speed["Unsloth"]["tokens_per_second"], speed["Unsloth"]["peak_gb"])
    rows = []
    for name, result in speed.items():
        least, most = goals.get(name, (None, None))
        rows.append(Row(name, result["tokens_per_second"], "tokens/s", result["settings"], at_least=least))
        rows.append(Row(f"{name}: peak memory", result["peak_gb"], "GB", "allocator", at_most=most))
        rows.append(Row(f"{name}: first loss", result["first_loss"], "nats", "the same pack and weights"))
    best = speed.get("ours, 80 GB")
    for other, times in (("usual script", 3), ("usual script, samples kept apart", 3), ("TRL", None), ("Unsloth", 1.6)):
        if best and other in speed:
            ratio = best["tokens_per_second"] / speed[other]["tokens_per_second"]
            rows.append(Row(f"ours against {other}", ratio, "times", "same run", at_least=times))
    rows += [Row(**row) for result in results for row in result.get("rows", [])]
    write("training", rows, folder)


class Bench:
    """One process: its device, its packs, and the results it has written."""

    def __init__(self, shape: Shape, results: Path) -> None:
        import torch

        from corax import hardware

        self.shape, self.results = shape, results
        self.device = hardware.device()
        self.dtype = hardware.compute_dtype(self.device)
        self.gpu = self.device.type == "cuda"
        if self.gpu:
            self._expandable_segments()
        self.total = torch.cuda.get_device_properties(0).total_memory if self.gpu else 0
        self.packs = list(packs(shape, 4))

    def _expandable_segments(self) -> None:
        """Less of the memory limit lost to fragmentation; not every virtual machine can."""
        import torch

        torch.cuda.memory._set_allocator_settings("expandable_segments:True")
        try:
            torch.zeros(1, device=self.device)
        except RuntimeError as error:
            print(f"no expandable segments: {str(error).splitlines()[0]}", flush=True)
            torch.cuda.memory._set_allocator_settings("expandable_segments:False")

    def report(self, **result: Any) -> None:
        """Print a result and keep it."""
        if "rows" not in result:
            print(json.dumps(result), flush=True)
        with self.results.open("a") as file:
            file.write(json.dumps(result) + "\n")

    def attempt(self, name: str, work: Callable[[], None]) -> bool:
        """Whether `work` ran; what it raised is printed and the memory it held is free."""
        import torch

        try:
            work()
            return True
        except Exception as error:  # a contender may fail in any way
            problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            print(f"{name}: failed, {problem}", flush=True)
            if not isinstance(error, torch.OutOfMemoryError):
                traceback.print_exc()
            return False
        finally:
            self.free()

    def free(self) -> None:
        """Give back what nothing refers to."""
        import torch

        gc.collect()
        if self.gpu:
            torch.cuda.empty_cache()

    def limited(self, gigabytes: float | None) -> None:
        """Let the allocator have no more than `gigabytes`."""
        import torch

        if self.gpu:
            torch.cuda.set_per_process_memory_fraction(min(1.0, gigabytes * GB / self.total) if gigabytes else 1.0)

    def chosen(self) -> list[Any]:
        """The pack of each step, those before the timed ones included."""
        return [self.packs[number % len(self.packs)] for number in range(self.shape.warmup + self.shape.steps)]

    def tokens_per_second(self, clock: "Clock") -> float:
        """The median of the timed steps."""
        steps = list(zip(self.chosen()[1:], clock.seconds(), strict=True))[self.shape.warmup - 1 :]
        return round(statistics.median(batch.input_ids.numel() / seconds for batch, seconds in steps), 1)

    def time(self, name: str, settings: str, model: Any, loss_sum: Callable[[Any, int], Any]) -> None:
        """Time steps of `loss_sum(batch, seed)` with clipping and AdamW on `model`'s adapter."""
        import torch

        from corax.settings.train import TrainSettings
        from corax.train.optimization import make_optimizer

        parameters = reset_adapter(model)
        optimizer = make_optimizer({str(n): each for n, each in enumerate(parameters)}, TrainSettings())
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
        losses, clock, begun = [], Clock(self.gpu), time.perf_counter()
        chosen = self.chosen()
        for number, batch in enumerate(chosen):
            optimizer.zero_grad()
            loss = loss_sum(batch, number) / len(batch.targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            losses.append(loss.detach())
            clock.tick()
        for parameter in parameters:
            parameter.grad = None
        self.report(
            name=name,
            settings=settings,
            tokens_per_second=self.tokens_per_second(clock),
            peak_gb=round(torch.cuda.max_memory_allocated() / GB, 3) if self.gpu else 0.0,
            reserved_gb=round(torch.cuda.max_memory_reserved() / GB, 3) if self.gpu else 0.0,
            first_loss=losses[0].item(),
            last_loss=losses[-1].item(),
            seconds=round(time.perf_counter() - begun, 1),
        )


class Clock:
    """When each step ended, on the device, so that the program never waits for it: as in training itself."""

    def __init__(self, gpu: bool) -> None:
        self.gpu = gpu
        self.ends: list[Any] = []

    def tick(self) -> None:
        """A step has been given to the device."""
        if not self.gpu:
            self.ends.append(time.perf_counter())
            return
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.ends.append(event)

    def seconds(self) -> list[float]:
        """From each step's end to the next one's."""
        if not self.gpu:
            return [end - start for start, end in pairwise(self.ends)]
        self.ends[-1].synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in pairwise(self.ends)]


def _child(args: argparse.Namespace) -> None:
    if args.group == "unsloth":
        import unsloth  # noqa: F401  # it must come before transformers
    bench = Bench(TINY if args.tiny else LLAMA, args.output / RESULTS)
    globals()[f"_{args.group}"](bench)


# The model and its data


def packs(shape: Shape, count: int) -> Iterator[Any]:
    """Packs filled with samples of the recorded lengths; random tokens."""
    import numpy as np

    from corax.train.packs import flatten

    recorded = json.loads((HERE / "quantum_lengths.json").read_text())
    random = np.random.default_rng(0)
    pairs = [(p // shape.shrink + 1, c // shape.shrink + 1) for p, c in zip(*recorded.values(), strict=True)]
    for _ in range(count):
        left, samples = shape.pack, []
        while fitting := [pair for pair in pairs if sum(pair) <= left]:
            prompt, completion = (
                fitting[random.integers(len(fitting))] if left > shape.pack // 8 else max(fitting, key=sum)
            )
            ids = random.integers(10, shape.model["vocab_size"], prompt + completion).astype(np.uint32)
            samples.append((ids, np.arange(prompt, prompt + completion)))
            left -= prompt + completion
        yield flatten(samples)


def random_model(bench: Bench, dropout: float = 0.0) -> Any:
    """A peft model on an NF4 base with random weights, made layer by layer on the device."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from corax.settings.lora import LoraSettings
    from corax.train.adapter import add_adapter

    start = time.perf_counter()
    config = LlamaConfig(**bench.shape.model, rope_theta=500000.0, tie_word_embeddings=False)
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config, dtype=bench.dtype, attn_implementation="sdpa")
    with torch.device(bench.device):
        base.model.rotary_emb = type(base.model.rotary_emb)(config)
    fill(base, bench)
    base.is_loaded_in_4bit = base.is_quantized = True
    lora = LoraSettings(r=bench.shape.r, lora_alpha=2.0 * bench.shape.r, lora_dropout=dropout)
    model = add_adapter(base.eval(), lora, seed=0)
    print(f"model made in {time.perf_counter() - start:.1f} s", flush=True)
    return model


def fill(base: Any, bench: Bench) -> None:
    """Give every weight of `base` its random values, the same for each contender; block linears in NF4."""
    import bitsandbytes as bnb
    import torch

    for number, (name, module) in enumerate(list(base.named_modules())):
        weight = getattr(module, "weight", None)
        if weight is None or "lora" in name or "rotary" in name:
            continue
        if "norm" in name:
            module.weight = torch.nn.Parameter(torch.ones(weight.shape, dtype=bench.dtype, device=bench.device), False)
            continue
        torch.manual_seed(number)
        rows, columns = (
            weight.shape if isinstance(module, torch.nn.Embedding) else (module.out_features, module.in_features)
        )
        values = torch.empty(rows, columns, dtype=bench.dtype, device=bench.device).normal_(std=0.02)
        if ".layers." not in name:
            module.weight = torch.nn.Parameter(values, False)
            continue
        options: dict[str, Any] = {"compress_statistics": True, "quant_type": "nf4"}
        if not isinstance(module, bnb.nn.Linear4bit):
            parent, _, child = name.rpartition(".")
            module = bnb.nn.Linear4bit(columns, rows, bias=False, compute_dtype=bench.dtype, device="meta", **options)
            base.get_submodule(parent).add_module(child, module)
        module.weight = bnb.nn.Params4bit(values, requires_grad=False, module=module, **options).to(bench.device)


def reset_adapter(model: Any) -> list[Any]:
    """The adapter's parameters, set back to a start that is the same for all contenders."""
    import torch

    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in named:
            parameter.zero_() if "lora_B" in name else parameter.normal_(std=0.01)
    return [parameter for _, parameter in named]


# The groups


def _ours(bench: Bench) -> None:
    """The goals, the gradients against transformers and peft, and where the time goes."""
    import torch

    from corax.train.fast import elementwise
    from corax.train.fast.engine import FastEngine, place_embedding

    model = random_model(bench)
    layers = bench.shape.model["num_hidden_layers"]

    def run(name: str, settings: str, kept: int, resident: bool) -> None:
        place_embedding(model, kept)
        engine = FastEngine(model, kept, resident)
        bench.time(name, settings, model, engine.loss_sum)

    bench.limited(80)
    everything = "all activations kept, dequantised base kept"
    if not bench.attempt("80 GB", partial(run, "ours, 80 GB", everything, layers, True)):
        elementwise.COMPILED_ON.clear()
        bench.attempt("80 GB", partial(run, "ours, 80 GB", f"{everything}, nothing compiled", layers, True))
    bench.limited(40)
    for kept in (layers, layers * 7 // 8, layers * 3 // 4, layers // 2):
        text = f"activations of {kept} of {layers} layers kept"
        if bench.attempt("40 GB", partial(run, "ours, 40 GB", text, kept, False)):
            break
    bench.limited(12)
    for kept in (1, 0):
        text = f"activations of {kept} of {layers} layers kept"
        if bench.attempt("12 GB", partial(run, "ours, 12 GB", text, kept, False)):
            break
    bench.limited(80)
    bench.attempt("no activations", partial(run, IN_UNSLOTHS_MEMORY, "no activations kept", 0, False))
    bench.attempt("gradients", lambda: _compare_gradients(bench, model))
    engine = FastEngine(model, layers, True)
    bench.attempt("profile", lambda: _profile(bench, model, engine))
    bench.attempt("deterministic", lambda: _deterministic(bench, model, engine))
    torch.use_deterministic_algorithms(False)


def _deterministic(bench: Bench, model: Any, engine: Any) -> None:
    import torch

    from corax import hardware

    hardware.deterministic(0, 2, strict=bench.gpu)
    bench.time("ours, deterministic", "as at 80 GB, deterministic algorithms", model, engine.loss_sum)
    digests = []
    for _ in range(2):
        parameters = reset_adapter(model)
        engine.loss_sum(bench.packs[0], 0).backward()
        digests.append([parameter.grad.clone() for parameter in parameters])
        for parameter in parameters:
            parameter.grad = None
    same = all(torch.equal(one, two) for one, two in zip(*digests, strict=True))
    row = {
        "name": "gradients made twice are equal bit for bit",
        "value": float(same),
        "unit": "1 is yes",
        "at_least": 1,
    }
    bench.report(name="repeatable", rows=[row])


def _compare_gradients(bench: Bench, model: Any) -> None:
    """Cosine of the whole gradient, fast layers against transformers and peft, on the same short pack."""
    import torch

    from corax.train.fast.engine import FastEngine, place_embedding
    from corax.train.general import GeneralEngine

    parameters = reset_adapter(model)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    batch = next(packs(Shape(bench.shape.model, bench.shape.pack // 4, bench.shape.shrink, bench.shape.r), 1))
    place_embedding(model, 10**6)
    found = []
    for engine in (FastEngine(model, 10**6, False), GeneralEngine(model)):
        loss = engine.loss_sum(batch, None)
        loss.backward()
        found.append((loss.item(), torch.cat([parameter.grad.reshape(-1) for parameter in parameters])))
        for parameter in parameters:
            parameter.grad = None
    (ours, mine), (theirs, other) = found
    cosine = torch.nn.functional.cosine_similarity(mine.double(), other.double(), dim=0).item()
    rows = [
        {"name": "gradient: cosine", "value": cosine, "unit": "", "against": "transformers and peft", "at_least": 0.99},
        {
            "name": "loss: difference",
            "value": abs(ours / theirs - 1),
            "unit": "of it",
            "against": "the same",
            "at_most": 0.002,
        },
    ]
    bench.report(name="gradients", rows=rows)


def _profile(bench: Bench, model: Any, engine: Any) -> None:
    """Milliseconds of a step by kind of kernel."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    parameters = reset_adapter(model)
    optimizer = torch.optim.AdamW(parameters, fused=bench.gpu)
    activity = ProfilerActivity.CUDA if bench.gpu else ProfilerActivity.CPU

    def step() -> None:
        optimizer.zero_grad()
        (engine.loss_sum(bench.packs[0], 0) / 1000).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    step()
    with profile(activities=[activity]) as profiler:
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
    rows = [{"name": f"profile: {kind}", "value": value, "unit": "ms"} for kind, value in times.items()]
    bench.report(name="profile", rows=rows)


def _self_time(event: Any, gpu: bool) -> float:
    return float(event.self_device_time_total if gpu else event.self_cpu_time_total)


KINDS = (
    ("attention", ("flash", "fmha")),
    ("compiled elementwise", ("triton",)),
    ("optimizer", ("multi_tensor", "adam", "lpnorm")),
    ("matrix products", ("gemm", "nvjet", "cutlass", "splitk", "cublas", "mm")),
    ("copies and fills", ("copy", "memcpy", "memset", "fill", "cat")),
)


def _kind(name: str) -> str:
    found = (kind for kind, words in KINDS if any(word in name.lower() for word in words))
    return next(found, "other")


def _usual(bench: Bench) -> None:
    """transformers and peft as their documentation has it: kbit preparation, SDPA, checkpointing, dropout 0.05."""
    import torch
    from peft import prepare_model_for_kbit_training

    model = random_model(bench, dropout=0.05)
    base = model.get_base_model()
    prepared = prepare_model_for_kbit_training(base, gradient_checkpointing_kwargs={"use_reentrant": False})
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    prepared.train()

    def loss_sum(batch: Any, packed: bool) -> Any:
        moved = batch.to(bench.device)
        options = {"position_ids": moved.position_ids} if packed else {}
        with torch.autocast(bench.device.type, dtype=bench.dtype, enabled=bench.gpu):
            loss = model(input_ids=moved.input_ids, labels=labels(moved), use_cache=False, **options).loss
        return loss * len(batch.targets)

    settings = "prepare_model_for_kbit_training, SDPA, checkpointing, dropout 0.05"
    for packed, name in ((False, "usual script"), (True, "usual script, samples kept apart")):
        work = partial(bench.time, name, settings, model, lambda batch, _, packed=packed: loss_sum(batch, packed))
        bench.attempt(name, work)


def labels(batch: Any) -> Any:
    """The labels that the trainers pass: -100 where there is no loss."""
    import torch

    result = torch.full_like(batch.input_ids, -100)
    result[0, batch.predicts + 1] = batch.targets
    return result


def _general(bench: Bench) -> None:
    """Our path for other architectures."""
    from corax.train.general import GeneralEngine

    model = random_model(bench)
    engine = GeneralEngine(model)
    bench.attempt(
        "general", lambda: bench.time("general path", "transformers and peft, varlen", model, engine.loss_sum)
    )
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    settings = "transformers and peft, varlen, checkpointing"
    bench.attempt("general", lambda: bench.time("general path, checkpointed", settings, model, engine.loss_sum))


def _ablation(bench: Bench) -> None:
    """The roads one by one, each taken away from ours at 80 GB."""
    from corax.train.fast import elementwise
    from corax.train.fast.engine import FastEngine, place_embedding

    layers = bench.shape.model["num_hidden_layers"]
    model = random_model(bench)

    def run(name: str, kept: int, resident: bool) -> None:
        place_embedding(model, kept)
        engine = FastEngine(model, kept, resident)
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
    model = random_model(bench, dropout=0.05)
    run("dropout 0.05", layers, True)


def _parts(bench: Bench) -> None:
    """Single products and kernels of a layer, in milliseconds, to see what each costs and what else would."""
    import bitsandbytes as bnb
    import torch

    from corax.train.fast import elementwise
    from corax.train.fast.quantised import QuantisedWeight

    sizes, rows, tokens = bench.shape.model, [], bench.shape.pack
    width, inner, r = sizes["hidden_size"], sizes["intermediate_size"], bench.shape.r
    head = width // sizes["num_attention_heads"]
    key_value = head * sizes["num_key_value_heads"]

    def add(name: str, work: Callable[[], Any], gigabytes: float = 0.0) -> None:
        milliseconds = _milliseconds(work, bench.gpu)
        speed = f"{gigabytes / milliseconds * 1000:,.0f} GB/s" if gigabytes else ""
        rows.append({"name": name, "value": milliseconds, "unit": "ms", "against": speed})
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
        rows.append(
            {
                "name": "dequantised values that are not bitsandbytes'",
                "value": float((difference > 0).sum()),
                "unit": f"of {difference.numel():,}, by up to {difference.max():.2g}",
                "at_most": 0,
            }
        )
        logits, wanted = random(tokens // 4, sizes["vocab_size"]), torch.zeros(tokens // 4, 1, dtype=torch.int64)
        wanted = wanted.to(bench.device)
        add("cross_entropy", lambda: elementwise.cross_entropy(logits, wanted), 3 * logits.numel() * 2 / GB)
    bench.report(name="parts", rows=rows)


def _milliseconds(work: Callable[[], Any], gpu: bool, times: int = 10) -> float:
    import torch

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


def _sparse_folder(bench: Bench) -> Path:
    """A 16-bit model folder whose weights are zeros that take no disk space; `fill` gives values after loading."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from corax.train.tensors import write_header

    folder = Path(SCRATCH) / "zeros"
    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(**bench.shape.model, rope_theta=500000.0, tie_word_embeddings=False)
    config.architectures, config.dtype = ["LlamaForCausalLM"], torch.bfloat16
    config.save_pretrained(folder)
    with torch.device("meta"):
        tensors = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).state_dict()
    with (folder / "model.safetensors").open("wb") as file:
        size = write_header(file, tensors)
        file.truncate(file.tell() + size)
    return folder


def _load(bench: Bench) -> None:
    """Loading and quantising from safetensors, to the first step's end."""
    from corax.model import load_quantised
    from corax.settings.lora import LoraSettings
    from corax.train.adapter import add_adapter
    from corax.train.fast.engine import FastEngine

    folder = _sparse_folder(bench)
    start = time.perf_counter()
    base = load_quantised(folder, bench.dtype, bench.device)
    loaded = time.perf_counter() - start
    anonymous = _anonymous_peak()
    model = add_adapter(base, LoraSettings(r=bench.shape.r), seed=0)
    engine = FastEngine(model, bench.shape.model["num_hidden_layers"], False)
    loss = engine.loss_sum(bench.packs[0], 0)
    loss.backward()
    loss.item()
    rows = [
        {"name": "load: quantised on the device", "value": loaded, "unit": "s", "against": "files in memory"},
        {"name": "load: to the first step's end", "value": time.perf_counter() - start, "unit": "s", "at_most": 60},
        {
            "name": "load: own host memory",
            "value": anonymous,
            "unit": "GB",
            "against": "16 GB of weights",
            "at_most": 8,
        },
        {
            "name": "load: peak of resident memory, files included",
            "value": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB,
            "unit": "GB",
        },
    ]
    bench.report(name="load", rows=rows)


def _anonymous_peak() -> float:
    """GB of this process's memory that no file backs, now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024 / GB


def _unsloth(bench: Bench) -> None:
    """Unsloth with its own checkpointing, dropout 0, on whole packs."""
    import torch
    from unsloth import FastLanguageModel

    folder = _sparse_folder(bench)
    _tokenizer(folder)
    model, _ = FastLanguageModel.from_pretrained(
        str(folder), max_seq_length=bench.shape.pack, dtype=bench.dtype, load_in_4bit=True, local_files_only=True
    )
    fill(model, bench)
    linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = FastLanguageModel.get_peft_model(
        model,
        r=bench.shape.r,
        lora_alpha=2 * bench.shape.r,
        lora_dropout=0,
        target_modules=linears,
        use_gradient_checkpointing="unsloth",
        max_seq_length=bench.shape.pack,
    )
    FastLanguageModel.for_training(model)

    def loss_sum(batch: Any, seed: int) -> Any:
        moved = batch.to(bench.device)
        lengths = (batch.position_ids[0] == 0).nonzero()[:, 0].diff(append=torch.tensor([batch.input_ids.numel()]))
        with torch.autocast("cuda", dtype=bench.dtype):
            loss = model(
                input_ids=moved.input_ids,
                position_ids=moved.position_ids,
                packed_seq_lengths=lengths.to(torch.int32).to(bench.device),
                labels=labels(moved),
            ).loss
        return loss * len(batch.targets)

    bench.attempt("Unsloth", lambda: bench.time("Unsloth", "its own checkpointing, packed", model, loss_sum))


def _trl(bench: Bench) -> None:
    """TRL's SFTTrainer on whole packs, with checkpointing and dropout 0.05, timed by a callback; it needs a GPU."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from corax.model import load_quantised
    from corax.settings.lora import LoraSettings
    from corax.train.adapter import add_adapter

    folder = _sparse_folder(bench)
    _tokenizer(folder)
    base = load_quantised(folder, bench.dtype, bench.device)
    fill(base, bench)
    lora = LoraSettings(r=bench.shape.r, lora_alpha=2.0 * bench.shape.r, lora_dropout=0.05)
    model = add_adapter(base, lora, seed=0)
    reset_adapter(model)
    rows = [{"input_ids": each.input_ids[0].tolist(), "labels": labels(each)[0].tolist()} for each in bench.chosen()]
    clock, losses = Clock(bench.gpu), []

    class Watch(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.tick()

        def on_log(self, *args: Any, logs: dict[str, float], **kwargs: Any) -> None:
            losses.extend([logs["loss"]] if "loss" in logs else [])

    settings = SFTConfig(
        output_dir=str(Path(SCRATCH) / "trl"),
        max_steps=len(rows),
        per_device_train_batch_size=1,
        train_sampling_strategy="sequential",
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=bench.gpu,
        use_cpu=not bench.gpu,
        learning_rate=1e-4,
        max_length=bench.shape.pack,
        logging_first_step=True,
        logging_steps=len(rows),
        save_strategy="no",
        report_to="none",
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trainer = SFTTrainer(model, settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.add_callback(Watch())
    if bench.gpu:
        torch.cuda.reset_peak_memory_stats()

    def run() -> None:
        trainer.train()
        bench.report(
            name="TRL",
            settings="SFTTrainer, SDPA, checkpointing, dropout 0.05",
            tokens_per_second=bench.tokens_per_second(clock),
            peak_gb=round(torch.cuda.max_memory_allocated() / GB, 3) if bench.gpu else 0.0,
            first_loss=losses[0],
        )

    bench.attempt("TRL", run)


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"<{number}>": number for number in range(300)} | {"<s>": 300, "</s>": 301, "<pad>": 302}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<0>"))  # noqa: S106
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")  # noqa: S106
    fast.save_pretrained(folder)


if __name__ == "__main__":
    main()
