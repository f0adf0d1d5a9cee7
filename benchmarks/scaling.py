"""The training step on one, two and four GPUs of a machine: tokens a second, and each rank's peak memory.

    python benchmarks/scaling.py                           (make bench-scaling)
    python benchmarks/scaling.py --tiny --ranks 1,2 --output /tmp/x    (every line of it on a CPU)

The model and packs of benchmarks/training.py (Llama-3-8B's shape, random weights, NF4) in the loop that trains: every
step is the same 16 packs, dealt to the ranks, their gradients summed over NCCL, and AdamW. The first are not timed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import numpy as np
from training_bench import Bench
from training_model import LLAMA, TINY, random_model

from corax.train.packs import Packs

SCRIPTS = Path(__file__).parent.parent / "scripts"
PACKS_PER_STEP = 16
WARMUP, STEPS = 1, 4


def main() -> None:
    """Run every number of ranks, then write the table."""
    args = _parser().parse_args()
    if args.rank_results:
        _rank(args)
        return
    numbers = [int(number) for number in args.ranks.split(",")]
    found = {number: _run(number, args.tiny) for number in numbers}
    _write(found, args.output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="1,2,4", help="numbers of GPUs")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder of scaling.json")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the program")
    parser.add_argument("--rank-results", type=Path, help=argparse.SUPPRESS)
    return parser


def _run(ranks: int, tiny: bool) -> list[dict[str, Any]]:
    """Start the ranks; what each of them measured."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            str(SCRIPTS / "launch.py"),
            "--ranks",
            str(ranks),
            __file__,
            "--rank-results",
            folder,
        ]
        subprocess.run(command + ["--tiny"] * tiny, check=True)
        return [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]


def _write(found: dict[int, list[dict[str, Any]]], output: Path) -> None:
    from table import Row, write

    one = min(found)
    goals = {2: 1.96, 4: 3.88}
    rows = []
    for number, ranks in found.items():
        speed = ranks[0]["tokens_per_second"]
        rows.append(Row(f"{number} GPUs", speed, "tokens/s", f"{PACKS_PER_STEP} packs a step"))
        if number != one:
            ratio = speed / found[one][0]["tokens_per_second"]
            rows.append(Row(f"{number} GPUs", ratio, "times", f"{one} GPU, same run", at_least=goals.get(number)))
        peaks = [rank["peak_gb"] for rank in ranks]
        rows.append(Row(f"{number} GPUs: peak memory, highest rank", max(peaks), "GB", "allocator"))
        rows.append(Row(f"{number} GPUs: peak memory, lowest rank", min(peaks), "GB", "allocator"))
    write("scaling", rows, output)


class RepeatedPacks(Packs):
    """The packs of a plan whose steps are all alike."""

    def __init__(self, batches: list[Any], steps: int, packs_per_step: int) -> None:
        self.batches = batches
        self.step = np.repeat(np.arange(steps), packs_per_step)
        chosen = [self.batches[pack % len(batches)] for pack in range(len(self.step))]
        self.target_tokens = np.array([len(batch.targets) for batch in chosen])
        self.token_counts = np.array([batch.input_ids.shape[1] for batch in chosen])

    def batch(self, pack: int) -> Any:
        """One pack."""
        return self.batches[pack % len(self.batches)]


def _rank(args: argparse.Namespace) -> None:
    import torch
    from accelerate import PartialState

    from corax import hardware
    from corax.settings.train import TrainSettings
    from corax.stop import StopRequest
    from corax.train.fast.engine import FastEngine
    from corax.train.general import GeneralEngine
    from corax.train.loop import Loop

    state = PartialState(cpu=not torch.cuda.is_available())
    bench = Bench(TINY if args.tiny else LLAMA, args.rank_results / "unused")
    hardware.deterministic(0, 2, strict=False)
    model = random_model(bench.shape, bench.device)
    engine = FastEngine(model, bench.shape.layers, True) if bench.gpu else GeneralEngine(model)
    settings = TrainSettings(eval_steps=10**6, save_steps=10**6)
    for steps in (WARMUP, STEPS):
        train = RepeatedPacks(bench.packs, steps, 4 if args.tiny else PACKS_PER_STEP)
        validation = RepeatedPacks(bench.packs[:1], 1, 1)
        with tempfile.TemporaryDirectory() as checkpoints:
            loop = Loop(engine, train, validation, settings, Path(checkpoints), StopRequest())
            loop.run()
        state.wait_for_everyone()
    result = {
        "tokens_per_second": round(loop.tokens_per_second, 1),
        "peak_gb": bench.peak(),
    }
    (args.rank_results / f"{state.process_index:03}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
