"""A configuration from data to report without Snakemake: its first run, the stages' scripts in order, on this machine.

    python benchmarks/real_run.py benchmarks/real_run.yaml --into work/real

Shards are made side by side, and training takes every GPU that this process sees. With `--seconds` a short training
comes first: where it shows that all steps would take longer, as many are planned as fit. The folder has the layout of
docs/artifacts.md, a log a stage in logs/, and `seconds.json`: what each stage took.
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import Gpu, Pipeline, gpus

from corax import config
from corax.errors import CoraxError

PACE = Path("results/pace")
PACE_STEPS = 30
"""Steps of the training that measures tokens a second."""


def run_all(pipeline: Pipeline, name: str, gpu: Gpu, train_seconds: float | None = None) -> None:
    """Every stage of a run, with at most `train_seconds` of training, without what comes before its first step."""
    seconds: dict[str, float] = {}

    def timed(what: str, work: Callable[[], None]) -> None:
        began = time.monotonic()
        work()
        seconds[what] = round(time.monotonic() - began, 1)
        print(f"{what}: {seconds[what]:.0f} s", flush=True)
        (pipeline.root / "seconds.json").write_text(json.dumps(seconds, indent=1) + "\n")

    timed("model, text and tokens", lambda: pipeline.prepare([name]))
    timed("plan", lambda: pipeline.plan(name))
    if train_seconds is not None:
        timed("plan of the short training", lambda: pipeline.plan(name, PACE_STEPS, PACE))
        timed("short training", lambda: pipeline.train(name, gpu, PACE))
        possible, planned = steps_within(pipeline, train_seconds), read_plan(pipeline, pipeline.folder(name))["steps"]
        print(f"{planned} steps planned, {possible} fit into {train_seconds:.0f} s", flush=True)
        if possible < planned:
            timed("plan of fewer steps", lambda: pipeline.plan(name, possible))
    timed("train", lambda: pipeline.train(name, gpu))
    timed("merge", lambda: pipeline.merge(name, gpu))
    timed("sample", lambda: pipeline.sample(name, gpu))
    timed("evaluate", lambda: pipeline.evaluate(name, gpu))
    timed("report", lambda: pipeline.report([name]))


def steps_within(pipeline: Pipeline, seconds: float) -> int:
    """The steps that fit into `seconds`, by the pace of the short training."""
    pace = pipeline.measured(PACE)["tokens_per_second"]
    tokens = read_plan(pipeline, PACE)["train"]["tokens"] / PACE_STEPS
    print(f"{pace:.0f} tokens/s, {tokens:.0f} tokens a step", flush=True)
    return max(1, int(seconds * pace / tokens))


def read_plan(pipeline: Pipeline, folder: Path) -> dict[str, Any]:
    """The plan in a run's folder."""
    found: dict[str, Any] = json.loads((pipeline.root / folder / "plan" / "plan.json").read_text())
    return found


def main() -> None:
    """Read the configuration and run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configuration", type=Path, help="YAML file as for Snakemake")
    parser.add_argument("--into", required=True, type=Path, help="folder to work in")
    parser.add_argument("--seconds", type=float, help="of training at most (default: all steps)")
    args = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    print("$ " + shlex.join(["python", *sys.argv]), flush=True)
    try:
        values = config.read(args.configuration)
        name = next(iter(values["runs"]))
        with gpus(args.into) as (gpu, *others):
            for other in others:
                other.close()
            if gpu.number:
                values["runs"][name]["plan"]["devices"] = 1 + len(others)
            checked = config.check(values, str(args.configuration))
            run_all(Pipeline(checked, args.into), name, gpu, args.seconds)
    except CoraxError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
