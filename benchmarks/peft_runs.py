"""presets/peft-comparison.yaml with a small model and data that can be checked: all its ways to tune, on this machine.

    python benchmarks/peft_runs.py vaderSentiment-3.3.1.tar.gz work/peft --model models/smollm2-135m --seconds 1800

Every way gets the same samples in the same order: as many steps as let all of them end in time, by the pace of short
trainings (or --steps); no run is begun that would end too late. On each visible GPU one run trains while another is
sampled and evaluated. After each run peft_comparison.py's table, plot and figures are written anew into the folder.
A step is one pack of 2,048 tokens, about 23 samples. With --at-once 3 --steps 200 two H100s took five minutes for all
sixteen.
"""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import peft_comparison
import peft_data
import timed_runs
from pipeline import REPOSITORY, Pipeline, gpus
from timed_runs import TimedRuns

from corax import config

PRESET = REPOSITORY / "presets" / "peft-comparison.yaml"
RATES = {
    "full": 1e-4,
    "lora": 1e-3,
    "lora-8bit": 1e-3,
    "qlora": 1e-3,
    "ia3": 1e-2,
    "prompt": 3e-2,
    "prefix": 5e-2,
    "adaption": 2e-2,
}
"""Learning rates for 135M parameters: the preset's are for 3B."""
PACED = ("lora-alpaca", "lora-8bit-alpaca", "qlora-alpaca")
"""A way of usual pace, the slow one, and the one whose kernels are compiled the first time."""
LEAST_STEPS, MOST_STEPS = 60, 300
AFTER_TRAINING = 75.0
"""Seconds that merging, sampling and evaluating a run take beside five others: 60, and some to spare."""


def main() -> None:
    """Make, run, compare."""
    parser = timed_runs.parser(str(__doc__), seconds=1800)
    parser.add_argument("--model", required=True, type=Path, help="folder of SmolLM2-135M")
    parser.add_argument("--only", nargs="+", help="only these runs, such as lora-alpaca")
    args = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    print("$ " + shlex.join(["python", *sys.argv]), flush=True)
    folder = args.folder.resolve()
    with gpus(folder, args.at_once) as devices:
        if not (folder / "data").is_dir():
            peft_data.write(args.package, folder / "data")
        on_gpu = devices[0].number != ""
        checked = config.check(configuration(args.model.resolve(), folder / "data", on_gpu), str(PRESET))
        names = [name for data in ("alpaca", "dolly") for name in checked.runs if name.endswith(data)]
        chosen = [name for name in names if not args.only or name in args.only]
        runs = TimedRuns(Pipeline(checked, folder), chosen, devices, args.seconds, PACED, AFTER_TRAINING)

        def compare(finished: list[str]) -> None:
            folders = [folder / runs.pipeline.folder(name) for name in finished]
            peft_comparison.write(peft_comparison.compare(folders), folder / "peft", folder)

        runs.all(compare, LEAST_STEPS, MOST_STEPS, args.steps)
        if runs.finished:
            print((folder / "peft.md").read_text())


def configuration(model: Path, data: Path, on_gpu: bool) -> dict[str, Any]:
    """The preset's, with another model, other data and what a small model wants."""
    values = config.read(PRESET)
    values["models"] = {"smollm2-135m": {"source": "local", "path": str(model), "license": "Apache-2.0"}}
    for name, dataset in values["datasets"].items():
        dataset["download"] = {"source": "local", "path": str(data / f"{name}.jsonl")}
        dataset["detokenize"] |= {"validation_share": 0.05, "test_share": 0.1}
    for way, run in values["runs"].items():
        run["model"] = "smollm2-135m"
        plan = {"max_length": 2048, "packs_per_step": 1, "validation_samples": 64}
        run["plan"] = {**run["plan"], **plan, "device": "h100-80gb" if on_gpu else "cpu"}
        train = {"learning_rate": RATES[way], "gradient_checkpointing": False, "deterministic": False}
        # Validation and checkpoint at the end alone: the time is that of the steps.
        run["train"] = {**run["train"], **train, "eval_steps": 10_000, "save_steps": 10_000}
        run["sample"] = {**run["sample"], "held_out_prompts": 400, "max_new_tokens": 40, "batch_size": 400}
        run["evaluate"] = {"test_samples": 300}
    return values


if __name__ == "__main__":
    main()
