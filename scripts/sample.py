"""Draw completions from the tuned model: for the task's targets and for prompts of the test part.

    python scripts/sample.py --task quantum --model results/runs/demo/merged \\
        --text results/datasets/quantum-short/text/000 --work work/demo/samples \\
        --output results/runs/demo/samples.parquet --sample.samples_per_target 10 --sample.temperature 0.2 0.6 1.0

One row a sample, in a fixed order. Sample n uses the random stream (seed, n), whatever its company. Finished samples
lie in --work until all are there; started again with the same options it goes on with the others. SIGTERM or SIGUSR1
stops it with what is finished (exit code 75). --pretokenize.* must be those that the model was trained with: they are
its template.
"""

import argparse
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from corax import architecture, cli, hardware, tasks
from corax.artifact import Artifact, open_artifact
from corax.errors import CoraxError
from corax.fingerprint import fingerprint
from corax.lock import lock
from corax.pretokenize.samples import kind_of
from corax.sample.constraint import Constraint, compile_grammar
from corax.sample.draw import Decoder, SamplingPaused, draw
from corax.sample.parts import Parts
from corax.sample.prompts import collect
from corax.sample.requests import Completion, Request, check_context, requests
from corax.settings.pretokenize import PretokenizeSettings
from corax.settings.sample import SampleSettings
from corax.template import Template

SCHEMA = pa.schema(
    [
        ("sample", pa.int32()),
        ("kind", pa.string()),
        ("name", pa.string()),
        ("prompt", pa.string()),
        ("reference", pa.string()),
        ("completion", pa.string()),
        ("tokens", pa.int32()),
        ("finish_reason", pa.string()),
        ("seed", pa.int64()),
        ("temperature", pa.float64()),
        ("top_p", pa.float64()),
    ]
)


def build_parser() -> argparse.ArgumentParser:
    """Options of this stage."""
    parser = cli.parser(__doc__, sample=SampleSettings, pretokenize=PretokenizeSettings)
    parser.add_argument("--task", required=True, help="task whose targets to sample for")
    parser.add_argument("--model", required=True, type=Path, help="folder of the tuned model")
    parser.add_argument("--text", required=True, type=Path, nargs="+", help="text shards, in order")
    parser.add_argument("--work", type=Path, default=Path("work/samples"), help="folder for finished samples")
    parser.add_argument("--max-length", type=int, help="pass over longer held-out prompts (tokens), as training did")
    parser.add_argument("--output", required=True, type=Path, help="Parquet file to make")
    return parser


def main(args: argparse.Namespace) -> None:
    """Make the artifact `args.output`."""
    settings = cli.settings(args, SampleSettings, "sample")
    headers = cli.settings(args, PretokenizeSettings, "pretokenize")
    inputs = [args.model, *args.text]
    for folder in inputs:
        open_artifact(folder)
    task = tasks.get(args.task)
    template = Template(args.model, headers.prompt_header, headers.completion_header, kind_of(args.text[0]))
    prompt_ids = cache(template.prompt_ids)  # targets repeat, and a held-out prompt is encoded to see whether it fits
    context = architecture.context(args.model)
    limits = (context and context - settings.max_new_tokens, args.max_length)
    room = min((limit for limit in limits if limit is not None), default=math.inf)
    prompts = collect(task, args.text, settings, lambda prompt: len(prompt_ids(prompt)) <= room)
    wanted = requests(prompts, prompt_ids, settings)
    check_context(wanted, settings.max_new_tokens, context)
    constraint = _constraint(task, template) if settings.constrained else None
    hardware.deterministic(settings.seed, settings.threads)
    device = hardware.device()
    decoder = Decoder(args.model, template, settings, constraint, device, hardware.compute_dtype(device))
    resolved = {"task": args.task, "max_length": args.max_length, "sample": settings, "pretokenize": headers}
    computed = {"dtype": str(decoder.dtype), "backend": decoder.backend}
    with lock(args.work):
        parts = Parts(args.work / _fingerprint(inputs, resolved, computed))
        cli.log.info("%d samples on %s in %s, %d finished", len(wanted), device, decoder.dtype, len(parts.done))
        try:
            rate = draw(decoder, wanted, parts)
        except SamplingPaused as pause:
            cli.log.info("%s; run again to go on", pause)
            sys.exit(cli.PAUSED)
        with Artifact(args.output, stage="sample", inputs=inputs, settings=resolved, file=True) as artifact:
            pq.write_table(table(wanted, parts.done, settings), artifact.path, compression="zstd")
            artifact.note(
                samples=len(wanted),
                tokens=sum(completion.tokens for completion in parts.done.values()),
                ended=sum(completion.finish_reason == "end" for completion in parts.done.values()),
                **computed,
            )
            artifact.measured(tokens_per_second=round(rate, 1), device=str(device))
        shutil.rmtree(parts.folder)


def table(wanted: Sequence[Request], done: Mapping[int, Completion], settings: SampleSettings) -> pa.Table:
    """The samples in order, with the columns of docs/artifacts.md."""
    rows = [
        {
            "sample": request.number,
            "kind": request.prompt.kind,
            "name": request.prompt.name,
            "prompt": request.prompt.text,
            "reference": request.prompt.reference,
            "completion": done[request.number].text,
            "tokens": done[request.number].tokens,
            "finish_reason": done[request.number].finish_reason,
            "seed": settings.seed,
            "temperature": request.temperature,
            "top_p": request.top_p,
        }
        for request in wanted
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _constraint(task: tasks.Task, template: Template) -> Constraint:
    if not isinstance(task, tasks.TaskWithGrammar):
        raise CoraxError(f"sample.constrained: the task {task.name} has no grammar, allowed: false")
    return compile_grammar(task.grammar(), template)


def _fingerprint(inputs: Sequence[Path], resolved: Mapping[str, Any], computed: Mapping[str, str]) -> str:
    """A name for everything that decides a sample, so that finished ones of other settings are never used."""
    digests = [open_artifact(path).digest for path in inputs]
    return fingerprint({"inputs": digests, "settings": resolved, "computed": computed})


if __name__ == "__main__":
    cli.run(main, build_parser())
