"""Sharded full fine-tuning over the GPUs of one node: memory and speed against the plan, losses against one GPU.

    python scripts/launch.py --ranks 4 benchmarks/sharded.py --seconds 150 --model results/models/smollm2-135m
    python scripts/launch.py --ranks 2 benchmarks/sharded.py --tiny --output /tmp/x    (every line of it on a CPU)

First random weights of StarCoder's and Llama-3-8B's shapes, cut to as many layers as fit, are trained as
presets/starcoder-full.yaml has it: 16 packs of 2,048 tokens a step, AdamW, checkpointing. Then the model in --model
(default: SmolLM2-135M's shape with random weights) is trained over all ranks and on one, in float32 and in 16 bits. The
table is written anew after each of them; what comes late is left out when --seconds are over.
"""

import argparse
import gc
import json
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState
from table import FOLDER, Row, write
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from corax import hardware
from corax.model import empty_model, load_plain
from corax.plan import devices, fit, memory, model, speed
from corax.settings.lora import LoraSettings
from corax.settings.train import TrainSettings
from corax.settings.tuning import TuningSettings
from corax.stop import StopRequest
from corax.train import sharded, tensors
from corax.train.engine import make_engine
from corax.train.loop import Loop, TrainingPaused
from corax.train.packs import Packs

GB = 10**9
ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "tests" / "data" / "configs"
DEVICE = "h100-80gb"
"""What the plan is asked for."""
SHAPES = ("starcoder", "llama-3-8b")
TINY = {
    "num_hidden_layers": 2,
    "n_layer": 2,
    "hidden_size": 64,
    "n_embd": 64,
    "intermediate_size": 128,
    "n_inner": 128,
    "num_attention_heads": 4,
    "n_head": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
"""Sizes of the models with --tiny."""
SMALL_LOSS = 5e-5
"""Goal for losses in float32, relative: what other orders of sums make of ten steps."""
MARGIN = 30
"""Seconds after which a rank that waits for another is ended."""


class Text(Packs):
    """Packs of `length` tokens, one sample each: a text's ids, or random ones."""

    def __init__(self, packs: int, packs_per_step: int, length: int, ids: np.ndarray) -> None:
        self.step = np.arange(packs) // packs_per_step
        self.ids, self.length = ids, length
        self.token_counts = np.full(packs, length)
        self.target_tokens = np.full(packs, length - 1)

    def samples(self, pack: int) -> list[tuple[np.ndarray, np.ndarray]]:
        start = pack * self.length % (len(self.ids) - self.length)
        return [(self.ids[start : start + self.length], np.arange(1, self.length))]


class Measured(Loop):
    """The training loop without checkpoints, until `deadline`; with the seconds of each step."""

    def __init__(self, *arguments: Any, deadline: float, alone: bool = False) -> None:
        super().__init__(*arguments)
        self.step_seconds: list[float] = []
        self.deadline = deadline
        if alone:
            self.rank, self.ranks = 0, 1

    def _step(self, step: int, batches: Iterator[Any]) -> bool:
        self._stop.made = time.monotonic() > self.deadline
        start = time.monotonic()
        stop = super()._step(step, batches)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.step_seconds.append(time.monotonic() - start)
        return stop

    def _save(self, step: int) -> None:
        pass


def main() -> None:
    """Measure case after case, and write what there is after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a small model for the comparison with one GPU")
    parser.add_argument("--seconds", type=float, default=150, help="time for all of it, this program's start included")
    parser.add_argument("--steps", type=int, default=10, help="steps of each training")
    parser.add_argument("--tiny", action="store_true", help="small models and packs")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder for sharded.json")
    args = parser.parse_args()
    deadline = time.monotonic() + args.seconds
    signal.alarm(round(args.seconds) + MARGIN)
    state = PartialState(cpu=not torch.cuda.is_available())
    device = hardware.device()
    hardware.deterministic(0, 1 if device.type == "cpu" else 4, strict=device.type == "cuda")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        cases = [lambda name=name: shape(name, args, device, Path(scratch), deadline) for name in SHAPES]
        cases.append(lambda: equality(args, device, Path(scratch), deadline))
        for case in cases:
            if _late(deadline, device):
                _say("no time left")
                break
            try:
                rows += case()
            except Exception:
                traceback.print_exc()
            _forget()
            if state.is_main_process and rows:
                write("sharded", rows, args.output)
    dist.barrier()
    dist.destroy_process_group()


def equality(args: argparse.Namespace, device: torch.device, scratch: Path, deadline: float) -> list[Row]:
    """A small model over all ranks against the same on the first rank alone: the losses of each step."""
    folder = args.model or _small_model(scratch, args.tiny)
    ids = _ids(folder)
    length = 64 if args.tiny else 512
    rows = []
    compute_dtype = hardware.compute_dtype
    for name, dtype in (("float32", torch.float32), ("16 bits", None)):
        if dtype:
            hardware.compute_dtype = lambda *_, dtype=dtype: dtype
        elif device.type == "cpu":
            break
        settings = TrainSettings(learning_rate=2e-5, warmup_ratio=0, eval_steps=args.steps, fsdp=True)
        # Small models wait for the host, a third of a second a pack: one for each rank.
        ranks = dist.get_world_size()
        packs = Text(ranks * args.steps, ranks, length, ids), Text(ranks, ranks, length, ids[::-1].copy())
        divided = _train(sharded.load(folder, device), packs, settings, deadline)
        _forget()
        _say(f"{folder.name}, {name}, over {dist.get_world_size()} ranks: loss {_losses(divided)[-1]:.6f}")
        alone = None
        if dist.get_rank() == 0:
            whole = load_plain(folder, torch.float32, device)
            alone = _train(whole, packs, settings.model_copy(update={"fsdp": False}), deadline, alone=True)
            _say(f"{folder.name}, {name}, on one: loss {_losses(alone)[-1]:.6f}")
        dist.barrier()
        hardware.compute_dtype = compute_dtype
        if alone is not None:
            pairs = list(zip(_losses(divided), _losses(alone), strict=False))
            what = f"largest relative difference of {len(pairs)} losses, one GPU"
            difference = max(abs(one - other) / other for one, other in pairs)
            rows.append(Row(f"small model, {name}", difference, "", what, at_most=SMALL_LOSS if dtype else 0.01))
            rows.append(Row(f"small model, {name}: last loss", pairs[-1][0], "nats", f"one GPU: {pairs[-1][1]:.6f}"))
    return rows


def shape(name: str, args: argparse.Namespace, device: torch.device, scratch: Path, deadline: float) -> list[Row]:
    """Train random weights of the shape `name`, as many layers as fit: memory, seconds a step and tokens a second."""
    start = time.monotonic()
    ranks, packs_per_step, length = dist.get_world_size(), 16, 32 if args.tiny else 2048
    settings = TrainSettings(
        learning_rate=1e-5, warmup_ratio=0.1, gradient_checkpointing=True, fsdp=True, eval_steps=10**6
    )
    folder = _config(name, scratch, args.tiny)
    content = json.loads((folder / "config.json").read_text())
    key = "n_layer" if "n_layer" in content else "num_hidden_layers"
    layers, every = content[key], content[key]
    while True:
        (folder / "config.json").write_text(json.dumps(content | {key: layers}))
        plan = memory.Training(
            model=model.from_config(folder / "config.json"),
            device=devices.GPUS[DEVICE],
            ranks=ranks,
            lora=LoraSettings(),
            train=settings,
            tuning=TuningSettings(method="full"),
            tokens=length,
            targets=length - 1,
            longest_sample=length,
            packs_per_rank=packs_per_step // ranks,
        )
        if fit.fits(plan):
            break
        layers -= 1
    name += "" if layers == every else f", {layers} of {every} layers"
    trained = _random(sharded.divide(empty_model(folder), device))
    _say(f"{name}: {sum(each.numel() for each in trained.parameters()):,} weights, {time.monotonic() - start:.0f} s")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    ids = np.random.default_rng(0).integers(0, trained.config.vocab_size, 10**6).astype(np.uint32)
    packs = Text(packs_per_step * args.steps, packs_per_step, length, ids), Text(ranks, ranks, length, ids)
    loop = _train(trained, packs, settings, deadline)
    seconds = float(np.median(loop.step_seconds[2:] or loop.step_seconds))
    _say(f"{name}: {len(loop.step_seconds)} steps, {seconds:.2f} s each, losses {_losses(loop)[0]:.3f} …")
    pack = speed.seconds_per_pack(plan, length, length - 1, length)
    planned = plan.packs_per_rank * pack + speed.optimizer_seconds(plan)
    of = f"{packs_per_step} packs of {length:,} tokens over {ranks} × {devices.GPUS[DEVICE].name}"
    rows = [
        Row(f"{name}: a step", seconds, "s", f"planned {planned:.3g} s, {of}"),
        Row(f"{name}: speed", packs_per_step * length / seconds, "tokens/s", "all ranks"),
        Row(f"{name}: steps timed", len(loop.step_seconds), "steps"),
    ]
    if device.type == "cuda":
        peaks = torch.tensor([torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()], device=device)
        dist.all_reduce(peaks, dist.ReduceOp.MAX)
        allocated, reserved = peaks.tolist()
        expected = memory.allocated(fit.estimate(plan))
        rows += [
            Row(f"{name}: peak memory of a rank", allocated / GB, "GB", f"planned {expected / GB:.1f} GB"),
            Row(f"{name}: planned less measured", 100 * (expected / allocated - 1), "%", "peak memory"),
            Row(f"{name}: reserved by a rank", reserved / GB, "GB", "with what the allocator holds unused"),
        ]
    return rows


def _train(
    trained: Any,
    packs: tuple[Text, Text],
    settings: TrainSettings,
    deadline: float,
    alone: bool = False,
) -> Measured:
    engine = make_engine(trained.requires_grad_(), settings, longest=packs[0].length)
    with StopRequest() as stop:
        loop = Measured(
            engine, *packs, settings, Path(tempfile.gettempdir(), "none"), stop, deadline=deadline, alone=alone
        )
        try:
            loop.run()
        except TrainingPaused as pause:
            _say(str(pause))
    return loop


def _losses(loop: Loop) -> list[float]:
    return [row["loss"] for row in loop.metrics if "loss" in row]


def _random(divided: Any) -> Any:
    """The model with matrices drawn from a normal distribution and norms that leave all as it is."""
    torch.manual_seed(dist.get_rank())
    with torch.no_grad():
        for name, parameter in divided.named_parameters():
            if parameter.dim() > 1:
                tensors.local(parameter).normal_(std=0.02)
            else:
                tensors.local(parameter).fill_(float(name.endswith("weight")))
    return divided


def _config(name: str, scratch: Path, tiny: bool) -> Path:
    """A folder with the configuration `name` alone."""
    folder = scratch / name
    folder.mkdir()
    content = json.loads((CONFIGS / f"{name}.json").read_text())
    if tiny:
        content |= {key: value for key, value in TINY.items() if key in content}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def _small_model(scratch: Path, tiny: bool) -> Path:
    """SmolLM2-135M's shape with the same random weights on all ranks, each in a folder of its own."""
    folder = _config("smollm2-135m", scratch, tiny)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    weights = AutoModelForCausalLM.from_config(config, dtype=torch.float32).named_parameters()
    tensors.write(folder / "model.safetensors", dict(weights))
    return folder


def _ids(folder: Path) -> np.ndarray:
    """The project's documents in the model's ids; random ones where it has no tokenizer."""
    if not (folder / "tokenizer.json").is_file():
        return np.random.default_rng(0).integers(0, 500, 10**5).astype(np.uint32)
    text = "\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
    return np.array(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids, np.uint32)


def _late(deadline: float, device: torch.device) -> bool:
    """Whether any rank is past the deadline."""
    late = torch.full((), float(time.monotonic() > deadline), device=device)
    dist.all_reduce(late)
    return bool(late)


def _forget() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _say(what: str) -> None:
    if dist.get_rank() == 0:
        print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
