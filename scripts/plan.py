"""Plan a run: which samples are learnt in which pack and step, and the memory and time it will take.

    python scripts/plan.py --model results/models/smollm2-135m \\
        --tokens results/datasets/quantum-short/tokens/smollm2-135m/000 \\
        --output results/runs/demo/plan --plan.max_length 512 --plan.max_steps 60 --lora.r 16

Samples are shuffled by the seed and packed; no sample is cut and none is lost. The output is a folder:
packs.parquet (one row a pack, in training order), plan.json (totals, memory by component, time, Slurm request) and
lengths.png. Layers keep their activations as far as the device's memory goes. A plan that does not fit is refused, with
what would fit. Needs no GPU and no weights in memory: the shapes come from the headers of the safetensors files. For a
memory table without any data: scripts/memory.py.

Give the token shards in the order of their numbers: packs.parquet names them by position, from 0.
"""

import argparse
import json
import math
from pathlib import Path

from corax import architecture, cli
from corax.artifact import Artifact, open_artifact
from corax.errors import CoraxError
from corax.lengths import plot_lengths
from corax.plan import devices, fit, memory, model, schedule, states, summary
from corax.plan.blocks import Blocks, survey
from corax.plan.schedule import PackWriter
from corax.settings import tuning as tuning_settings
from corax.settings.lora import LoraSettings
from corax.settings.plan import PlanSettings
from corax.settings.train import TrainSettings
from corax.settings.tuning import TuningSettings
from corax.tokens import TokenShards, check_tokenizer

TRANSPOSED = ("gpt2", "openai-gpt")
"""Architectures of transformers' Conv1D layers: inputs × outputs."""


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = cli.parser(__doc__, plan=PlanSettings, lora=LoraSettings, tuning=TuningSettings, train=TrainSettings)
    parser.add_argument("--model", required=True, type=Path, help="folder of the base model")
    parser.add_argument("--tokens", required=True, type=Path, nargs="+", help="folders of the token shards, in order")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    return parser


def main(args: argparse.Namespace) -> None:
    """Write the plan."""
    settings = cli.settings(args, PlanSettings, "plan")
    lora = cli.settings(args, LoraSettings, "lora")
    tuning = cli.settings(args, TuningSettings, "tuning")
    train = cli.settings(args, TrainSettings, "train")
    has_encoder = architecture.is_encoder_decoder(args.model)
    tuning_settings.check(tuning, lora, train, settings.packing, settings.devices, has_encoder)
    manifest, base = open_artifact(args.model), model.read(args.model)
    if base.family in TRANSPOSED and tuning.method == "lora":
        raise CoraxError(
            f"{args.model}/config.json: model_type is {base.family!r}, whose weights are transposed, which `merge` "
            "does not know for tuning.method 'lora'; allowed: full"
        )
    train_blocks = Blocks(args.tokens, "train")
    validation_blocks = Blocks(args.tokens, "validation", settings.validation_samples)
    check_tokenizer(manifest, TokenShards(args.tokens, "train"))
    # Now, not when the training is over.
    if not any((lengths <= settings.max_length).any() for lengths, _ in TokenShards(args.tokens, "test").lengths()):
        raise CoraxError(
            f"{args.tokens[0] / 'test.parquet'}: no test sample of at most {settings.max_length} tokens "
            f"(plan.max_length) in this or any other of {len(args.tokens)} shards, sample and evaluate need one: raise "
            "detokenize.test_share"
        )
    surveys = [survey(blocks, settings.max_length, settings.over_long) for blocks in (train_blocks, validation_blocks)]
    longest = max(each.longest for each in surveys)
    _check_context(args.model, longest)

    groups = {"plan": settings, "lora": lora, "tuning": tuning, "train": train}
    with Artifact(args.output, stage="plan", inputs=[args.model, *args.tokens], settings=groups) as artifact:
        with PackWriter(artifact.path / "packs.parquet") as writer:
            train_chunks = schedule.train_chunks(train_blocks, settings, artifact.path)
            train_part = writer.write("train", train_chunks, settings.packs_per_step)
            validation_chunks = schedule.validation_chunks(validation_blocks, settings)
            validation_part = writer.write("validation", validation_chunks, settings.packs_per_step)
        wanted = memory.Training(
            model=base,
            device=devices.get(settings.device, settings.devices, train.threads),
            ranks=settings.devices,
            lora=lora,
            train=train,
            tuning=tuning,
            tokens=max(train_part.most_tokens, validation_part.most_tokens),
            targets=max(train_part.most_targets, validation_part.most_targets),
            longest_sample=longest,
            samples=max(train_part.most_samples, validation_part.most_samples),
            new_tokens=len(manifest.facts.get("new_token_ids", [])),
            packs_per_rank=math.ceil(min(settings.packs_per_step, train_part.packs) / settings.devices),
        )
        states.check_saved(wanted)
        training = fit.decide(wanted)
        fit.check(training)
        plan = summary.content(settings, training, train_part, validation_part, surveys)
        for line in summary.lines(plan):
            cli.log.info(line)
        (artifact.path / "plan.json").write_text(json.dumps(plan, indent=1) + "\n")
        counts = {each.part: each.counts for each in surveys}
        plot_lengths(artifact.path / "lengths.png", counts, settings.max_length)
        artifact.note(
            parameters=base.parameters,
            trained_parameters=states.trained_weights(training),
            steps=plan["steps"],
            fill=plan["train"]["fill"],
            memory_bytes=plan["memory_bytes"],
            hours=plan["hours"],
        )


def _check_context(folder: Path, longest: int) -> None:
    """Raise CoraxError if the longest sample has more tokens than the model has positions."""
    context = architecture.context(folder)
    if context is not None and longest > context:
        raise CoraxError(
            f"{folder}/config.json: the model's context is {context}, the longest sample has {longest} tokens; "
            f"set plan.max_length to at most {context} and plan.over_long to drop"
        )


if __name__ == "__main__":
    cli.run(main, build_parser())
