"""Compare base and tuned model on the test part, and judge the samples by the task's own metrics.

    python scripts/evaluate.py --task quantum --base results/models/smollm2-135m \\
        --tuned results/runs/demo/merged --samples results/runs/demo/samples.parquet \\
        --tokens results/datasets/quantum-short/tokens/smollm2-135m/000 --output results/runs/demo/evaluation.json

Loss is in nats per target token (completion and end token), token accuracy the share of target tokens that
are the model's most likely one; the intervals are those of a paired bootstrap over the samples. The models are loaded
one after the other.
"""

import argparse
import json
from pathlib import Path

import pyarrow.parquet as pq

from corax import architecture, cli, hardware, tasks
from corax.artifact import Artifact, open_artifact
from corax.errors import CoraxError
from corax.evaluation import compare, first_rows, score_model
from corax.settings.evaluate import EvaluateSettings
from corax.tokens import TokenShards, check_tokenizer


def build_parser() -> argparse.ArgumentParser:
    """Options of this stage."""
    parser = cli.parser(__doc__, evaluate=EvaluateSettings)
    parser.add_argument("--task", required=True, help="task whose metrics judge the samples")
    parser.add_argument("--base", required=True, type=Path, help="folder of the base model")
    parser.add_argument("--tuned", required=True, type=Path, help="folder of the tuned model")
    parser.add_argument("--tokens", required=True, type=Path, nargs="+", help="token shards, in order")
    parser.add_argument("--samples", required=True, type=Path, help="samples of the tuned model")
    parser.add_argument("--max-length", type=int, help="pass over longer samples (tokens), as training did")
    parser.add_argument("--output", required=True, type=Path, help="JSON file to make")
    return parser


def main(args: argparse.Namespace) -> None:
    """Make the artifact `args.output`."""
    settings = cli.settings(args, EvaluateSettings, "evaluate")
    task = tasks.get(args.task)
    shards = TokenShards(args.tokens, "test")
    for folder in (args.base, args.tuned):
        check_tokenizer(open_artifact(folder), shards)
    stage = open_artifact(args.samples).content["stage"]
    if stage != "sample":
        raise CoraxError(f"{args.samples}: made by {stage}, not by sample")
    samples = pq.read_table(args.samples).to_pylist()
    rows = first_rows(shards, settings.test_samples, architecture.context(args.base), args.max_length)
    hardware.deterministic(0, settings.threads)
    device = hardware.device()
    dtype = hardware.compute_dtype(device)
    inputs = [args.base, args.tuned, *args.tokens, args.samples]
    resolved = {"task": args.task, "max_length": args.max_length, "evaluate": settings}
    with Artifact(args.output, stage="evaluate", inputs=inputs, settings=resolved, file=True) as artifact:
        judged = task.score(samples)
        base = score_model(args.base, shards, rows, dtype, device)
        tuned = score_model(args.tuned, shards, rows, dtype, device)
        held_out = compare(base, tuned)
        content = {"held_out": held_out, "task": judged}
        artifact.path.write_text(json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")
        artifact.note(dtype=str(dtype))
        artifact.measured(device=str(device))
    cli.log.info("held-out loss %.4f (base) %.4f (tuned)", held_out["base"]["loss"], held_out["tuned"]["loss"])


if __name__ == "__main__":
    cli.run(main, build_parser())
