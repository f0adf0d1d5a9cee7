"""Compare base and tuned model on local task files of lm-evaluation-harness.

    python scripts/harness.py --base results/models/smollm2-135m --tuned results/runs/demo/merged \\
        --harness.tasks tasks/colours.yaml tasks/sums.yaml --output results/runs/demo/harness.json

A task file is YAML, with its data (JSON, JSON lines or Parquet) beside it. It is read as data: functions, modules and
remote data are refused, and templates are rendered in a sandbox (docs/evaluate.md has the keys). Nothing is downloaded.
Both models get the same prompts, one model after the other; standard errors are the harness's, the interval of the
difference is that of a paired bootstrap over the documents.
"""

import argparse
import json
import os
from pathlib import Path

from corax import cli
from corax.artifact import Artifact, open_artifact
from corax.errors import CoraxError
from corax.harness.task_file import read_all
from corax.settings.harness import HarnessSettings


def build_parser() -> argparse.ArgumentParser:
    """Options of this stage."""
    parser = cli.parser(__doc__, harness=HarnessSettings)
    parser.add_argument("--base", required=True, type=Path, help="folder of the base model")
    parser.add_argument("--tuned", required=True, type=Path, help="folder of the tuned model")
    parser.add_argument("--output", required=True, type=Path, help="JSON file to make")
    return parser


def main(args: argparse.Namespace) -> None:
    """Make the artifact `args.output`."""
    settings = cli.settings(args, HarnessSettings, "harness")
    tasks = read_all(settings.tasks, settings.num_fewshot)
    if not tasks:
        raise CoraxError("--harness.tasks: none given, allowed: one task file or more")
    for folder in (args.base, args.tuned):
        open_artifact(folder)
    # Read when the libraries are imported; processes of their own would give the same standard errors.
    os.environ.update(HF_HUB_OFFLINE="1", DISABLE_MULTIPROC="1")
    try:
        from corax import hardware
        from corax.harness import comparison
    except ModuleNotFoundError as error:
        raise CoraxError(f"{error.name}: not installed here; see docs/evaluate.md, lm-evaluation-harness") from None
    hardware.deterministic(0, settings.threads)
    device = hardware.device()
    dtype = hardware.compute_dtype(device)
    inputs = [args.base, args.tuned, *(file for task in tasks for file in task.files)]
    with Artifact(args.output, stage="harness", inputs=inputs, settings={"harness": settings}, file=True) as artifact:
        compared = comparison.compare(tasks, args.base, args.tuned, settings, dtype, device)
        artifact.path.write_text(json.dumps({"tasks": compared}, indent=1, sort_keys=True, allow_nan=False) + "\n")
        artifact.note(lm_eval=comparison.VERSION, dtype=str(dtype), documents=sum(task["used"] for task in compared))
        artifact.measured(device=str(device))
    for task in compared:
        first = task["metrics"][0]
        values = first["base"]["value"], first["tuned"]["value"]
        cli.log.info("%s: %s %.4f (base) %.4f (tuned)", task["name"], first["name"], *values)


if __name__ == "__main__":
    cli.run(main, build_parser())
