"""Merging against a plain copy of the files and against peft, on a Llama with random weights.

    make bench-merge
    .venv/bin/python benchmarks/merge.py --gigabytes 16 --shard-gigabytes 5 --ranks 64 --turns 1 --name merge-16gb

The second is for a GPU machine: it needs three times the model's size on the disk. Each way is a process of its own,
which works by turns with a plain copy, so that what else the machine does disturbs both, and says wall-clock and CPU
seconds (without imports and compilation) and its largest memory. Each way is one candidate, `both` is the two of
`merge.base: best`, against two copies. Nothing is scored here: that is `score_seconds` in the manifest of a merged
model. The result is written after every way, and after `--seconds` the rest is left out.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from table import Row, write

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "scripts"))

SHAPES = {
    "small": {"hidden": 2048, "wide": 5632, "keys": 256, "vocabulary": 32_000},
    "large": {"hidden": 4096, "wide": 14_336, "keys": 1024, "vocabulary": 128_256},
}
"""TinyLlama's and Llama-3-8B's; the first for models of less than LARGE bytes."""
LARGE = 8e9
NF4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
DIGEST = "8221473dc6e67018616af89224752624cce435f0e366b78eba4bc0f39b4f35a7"
"""sha256 of what `compile_sums` makes, on every machine."""
PRODUCT = (128, 4096)
"""Rows and columns of the product whose speed is measured."""


def main() -> None:
    """Run all ways and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.5, help="size of the model (default: %(default)s)")
    parser.add_argument("--shard-gigabytes", type=float, default=0.75, help="size of a file (default: %(default)s)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64], help="of the adapter (default: 16 64)")
    parser.add_argument("--turns", type=int, default=3, help="times each way is taken (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=150, help="for all of it (default: %(default)s)")
    parser.add_argument("--name", default="merge", help="name of the result (default: %(default)s)")
    parser.add_argument("--child", nargs=2, metavar=("WORK", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.child[0], Path(args.child[1]), args.turns)))
        return
    end = time.monotonic() + args.seconds
    with tempfile.TemporaryDirectory(prefix="corax-bench-") as name:
        folder = Path(name)
        model = make_model(folder / "model", args.gigabytes * 1e9, args.shard_gigabytes * 1e9)
        os.sync()
        say(end, f"made {args.gigabytes} GB in {folder}")
        files = [file.stat().st_size for file in model.glob("*.safetensors")]
        result: list[Row] = []
        for rank in args.ranks:
            weights = make_adapter(folder, model, rank)
            result += floor(rank, weights)
            ways: dict[str, dict[str, Any]] = {}
            for work in WORKS:
                try:
                    ways[work] = child(work, folder, args.turns, end - time.monotonic())
                except subprocess.TimeoutExpired:
                    say(end, f"r={rank}, {work}: no time left")
                    continue
                say(end, f"r={rank}, {work}: {ways[work]['seconds']:.2f} s, a copy {ways[work]['copy']:.2f} s")
                write(args.name, [*result, *rows(rank, files, ways)])
            result += rows(rank, files, ways)


def say(end: float, text: str) -> None:
    """A line of progress."""
    print(f"{text}; {max(0, end - time.monotonic()):.0f} s left", file=sys.stderr, flush=True)


def floor(rank: int, weights: int) -> list[Row]:
    """What no way can save: the products."""
    speed, cores = product_speed(rank), os.cpu_count() or 1
    seconds = 2 * rank * weights / (speed * cores)
    return [
        Row(f"r={rank}: float32 product", speed / 1e9, "GFLOP/s", "one core"),
        Row(f"r={rank}: all products, no other work", seconds, "s", f"all {cores} cores at that speed"),
    ]


def rows(rank: int, files: list[int], ways: dict[str, dict[str, Any]]) -> list[Row]:
    """The figures of the ways that were measured."""
    what, peft = f"{sum(files) / 1e9:.2f} GB in {len(files)} files", ways.get("peft")
    result = []
    for name, found in ways.items():
        prefix = f"r={rank}, {name}"
        result += [
            Row(f"{prefix}: time", found["seconds"], "s", what),
            Row(f"{prefix}: a copy, by turns", found["copy"], "s", what),
            Row(f"{prefix}: CPU time", found["cpu"], "s", f"the copy: {found['copy_cpu']:.2f} s"),
            Row(f"{prefix}: CPU time", found["cpu"] / found["copy_cpu"], "times", "a copy of the files"),
            Row(f"{prefix}: peak memory", found["peak"] / 1e9, "GB", what),
        ]
        if name == "peft":
            continue
        copies = len(BASES[name])
        ratio = found["seconds"] / found["copy"] / copies
        against = "a copy of the files" if copies == 1 else f"{copies} copies of the files"
        result += [
            Row(f"{prefix}: compilation", found["first"], "s", "once in a process"),
            Row(f"{prefix}: the same bytes", float(found["digest"] == DIGEST), "", "other machines", at_least=1),
            Row(f"{prefix}: time", ratio, "times", against, at_most=1.5),
            Row(f"{prefix}: peak memory", found["peak"] / max(files), "times", "the largest file", at_most=1.5),
            Row(f"{prefix}: peak memory", (found["peak"] - found["start"]) / 1e6, "MB", "before the work"),
        ]
        if peft:
            faster = peft["seconds"] / peft["copy"] / ratio / copies
            result += [
                Row(f"{prefix}: time", faster, "times faster", "peft"),
                Row(f"{prefix}: peak memory", found["peak"] / peft["peak"], "times", "peft"),
            ]
    return result


def child(work: str, folder: Path, turns: int, seconds: float) -> dict[str, Any]:
    """Measure one way in a process of its own; raises subprocess.TimeoutExpired after `seconds`."""
    command = [sys.executable, __file__, "--child", work, str(folder), f"--turns={turns}"]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=max(0.0, seconds))
    if done.returncode:
        sys.exit(f"error: {work}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(name: str, folder: Path, turns: int) -> dict[str, Any]:
    """Medians of wall-clock and CPU seconds of a way and of a copy; memory in bytes at the start and at most."""
    ready = WORKS[name](folder)
    began = time.perf_counter()
    digest = compile_sums() if name in BASES else ""
    first = time.perf_counter() - began
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak, which began as that of the parent process
    start = memory("VmRSS")
    seconds: dict[str, list[float]] = {name: [] for name in ("copy", "copy_cpu", "seconds", "cpu")}
    for _ in range(turns):
        for names, each in ((("copy", "copy_cpu"), lambda: copy(folder)), (("seconds", "cpu"), ready)):
            shutil.rmtree(folder / "made", ignore_errors=True)
            (folder / "made").mkdir()
            os.sync()
            began = time.perf_counter(), time.process_time()
            each()
            for key, before, after in zip(names, began, (time.perf_counter(), time.process_time()), strict=True):
                seconds[key].append(after - before)
    shutil.rmtree(folder / "made")
    medians = {key: median(values) for key, values in seconds.items()}
    return {"start": start, "peak": memory("VmHWM"), "first": first, "digest": digest, **medians}


def compile_sums() -> str:
    """Merge a small weight onto both bases, so that all is compiled; the sha256 of the result."""
    import torch

    from corax.merge.four_bits import BLOCK, RoundTrip, largest_magnitudes
    from corax.merge.sums import Product

    def numbers(rows: int, columns: int) -> torch.Tensor:
        """The same on every machine, unlike those of a random number generator."""
        steps = torch.arange(rows * columns) * 2654435761 % 2**20 - 2**19
        return (steps / 2**22).view(rows, columns)

    bases = numbers(128, 704).bfloat16().repeat(2, 1, 1)
    largest = torch.empty(bases[1].numel() // BLOCK, dtype=torch.bfloat16)
    largest_magnitudes(bases[1].flatten().view(torch.int16).numpy(), largest.view(torch.int16).numpy())
    RoundTrip(largest, "nf4", True).apply(bases[1], 0)
    Product.of(numbers(128, 64), numbers(64, 704), 0.3).add_to(bases, 0)
    return hashlib.sha256(bases.view(torch.uint8).numpy().tobytes()).hexdigest()


def memory(key: str) -> int:
    """Bytes of memory of this process: VmRSS now, VmHWM at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def copy(folder: Path) -> None:
    """All files of the model."""
    for file in sorted((folder / "model").iterdir()):
        shutil.copyfile(file, folder / "made" / file.name)


def merge(folder: Path, names: Sequence[str]) -> Callable[[], None]:
    """What scripts/merge.py does to make the candidates."""
    import torch

    from corax.merge.lora import read_adapter
    from corax.merge.quantisation import seen_in_training
    from corax.merge.weights import write_merged

    model, adapter = folder / "model", folder / "adapter"

    def work() -> None:
        outputs = {}
        for name in names:
            made = folder / "made" / name
            made.mkdir()
            outputs[made] = seen_in_training(model, NF4, torch.bfloat16) if name == "nf4" else {}
        lora, factors = adapter / "adapter_model.safetensors", read_adapter(model, adapter)
        write_merged(model, lora, factors, outputs, len(os.sched_getaffinity(0)))

    return work


def merge_peft(folder: Path) -> Callable[[], None]:
    """peft's own way: load, merge, save."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    def work() -> None:
        base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.bfloat16)
        peft.PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload().save_pretrained(folder / "made")

    return work


BASES = {"original": ["original"], "nf4": ["nf4"], "both": ["original", "nf4"]}
"""What is added onto; a model for each."""
WORKS: dict[str, Callable[[Path], Callable[[], None]]] = {
    "original": partial(merge, names=BASES["original"]),
    "nf4": partial(merge, names=BASES["nf4"]),
    "peft": merge_peft,
    "both": partial(merge, names=BASES["both"]),
}
"""In the order of the measurements: what a longer one would leave out comes last."""


def product_speed(rank: int) -> float:
    """Operations a second of the product B·A in float32 on one core."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows, columns = PRODUCT
    a, b, total = torch.ones(rank, columns), torch.ones(rows, rank), torch.zeros(PRODUCT)
    times = []
    for _ in range(50):
        began = time.perf_counter()
        total.addmm_(b, a, alpha=2.0)
        times.append(time.perf_counter() - began)
    torch.set_num_threads(threads)
    return 2 * rank * rows * columns / min(times)


def make_model(folder: Path, size: float, shard_size: float) -> Path:
    """A Llama of about `size` bytes in bfloat16, written file by file; its numbers are random, but repeat."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    shape = SHAPES["small" if size < LARGE else "large"]
    hidden, vocabulary = shape["hidden"], shape["vocabulary"]
    linear = linear_shapes(shape)
    layer_bytes = 2 * sum(rows * columns for rows, columns in linear.values())
    layers = max(1, round((size - 4 * vocabulary * hidden) / layer_bytes))
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        tensors |= {f"{prefix}.{module}.weight": each for module, each in linear.items()}
        tensors |= {f"{prefix}.{norm}.weight": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
    tensors |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}

    folder.mkdir()
    LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=shape["wide"],
        num_hidden_layers=layers,
        num_attention_heads=hidden // 128,
        num_key_value_heads=shape["keys"] // 128,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    ).save_pretrained(folder)
    numbers = (torch.randn(2**24, generator=torch.Generator().manual_seed(0)) * 0.02).to(torch.bfloat16)
    files: dict[str, str] = {}
    pending: dict[str, Any] = {}
    for number, (name, each) in enumerate(tensors.items()):
        count = torch.Size(each).numel()
        repeated = numbers.roll(1000 * number).repeat(-(-count // len(numbers)))
        pending[name] = repeated[:count].view(each).clone()
        if sum(tensor.nbytes for tensor in pending.values()) >= shard_size or name == "lm_head.weight":
            file = f"model-{len(set(files.values())) + 1:05}.safetensors"
            save_file(pending, folder / file, metadata={"format": "pt"})
            files |= dict.fromkeys(pending, file)
            pending = {}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


def linear_shapes(shape: dict[str, int]) -> dict[str, tuple[int, int]]:
    """(out, in) of the linear layers of a block."""
    hidden, wide, keys = shape["hidden"], shape["wide"], shape["keys"]
    attention = {"q_proj": (hidden, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden)}
    attention["o_proj"] = (hidden, hidden)
    mlp = {"gate_proj": (wide, hidden), "up_proj": (wide, hidden), "down_proj": (hidden, wide)}
    named = {f"self_attn.{name}": each for name, each in attention.items()}
    return named | {f"mlp.{name}": each for name, each in mlp.items()}


def make_adapter(folder: Path, model: Path, rank: int) -> int:
    """A LoRA adapter on all linear layers of the blocks; returns the number of weights that it changes."""
    import torch
    from safetensors.torch import save_file

    from corax.merge.weights import read_header

    adapter = folder / "adapter"
    adapter.mkdir(exist_ok=True)
    lora: dict[str, torch.Tensor] = {}
    weights = 0
    for file in sorted(model.glob("*.safetensors")):
        for name, tensor in read_header(file).items():
            if name.endswith("_proj.weight"):
                prefix = f"base_model.model.{name.removesuffix('.weight')}"
                lora[f"{prefix}.lora_A.weight"] = torch.randn(rank, tensor.shape[1]) * 0.02
                lora[f"{prefix}.lora_B.weight"] = torch.randn(tensor.shape[0], rank) * 0.02
                weights += tensor.shape[0] * tensor.shape[1]
    save_file(lora, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank}
    modules = sorted({name.split(".")[-3] for name in lora})
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"target_modules": modules}))
    return weights


if __name__ == "__main__":
    main()
