"""The training step against the usual script and, where installed, Unsloth and TRL: speed, memory, first losses.

    python benchmarks/training.py                       (one GPU; make bench-training)
    python benchmarks/training.py --tiny --output /tmp/x    (every line of it on a CPU, in a minute)

Random weights of Llama-3-8B's shape in NF4, LoRA r = 64 on all linear layers, packs of 8192 tokens of simulated
quantum experiments (lengths: quantum_lengths.json, mean 488). A step is one pack with AdamW, the median of several
after warm-up. Each group of cases runs in a process of its own with a time limit, so that one failure loses no other.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import training_table

GROUPS = ("ours", "usual", "unsloth", "trl", "parts", "ablation", "general", "load")
"""In order of value: what comes late is left out when time is short."""
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
        training_table.write([json.loads(line) for line in results.read_text().splitlines()], args.output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).parent / "results"
    parser.add_argument("--output", type=Path, default=default, help="folder for training.json")
    parser.add_argument("--groups", default=",".join(GROUPS), help="which groups, in which order")
    parser.add_argument("--group", choices=GROUPS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=1800, help="time for all groups")
    parser.add_argument("--limit", type=float, default=600, help="time for one group")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the program")
    return parser


def _child(args: argparse.Namespace) -> None:
    """One group; only now, in a process of its own, are the libraries loaded."""
    if args.group == "unsloth":
        import unsloth  # noqa: F401  # it must come before transformers
    import training_contenders
    import training_kernels
    import training_ours
    from training_bench import Bench
    from training_model import LLAMA, TINY

    work = {
        "ours": training_ours.goals,
        "usual": training_contenders.usual,
        "unsloth": training_contenders.unsloth,
        "trl": training_contenders.trl,
        "parts": training_kernels.parts,
        "ablation": training_ours.ablation,
        "general": training_ours.general,
        "load": training_ours.load,
    }
    work[args.group](Bench(TINY if args.tiny else LLAMA, args.output / RESULTS))


if __name__ == "__main__":
    main()
