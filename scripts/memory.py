"""What training would need on a device, and what would fit: from a model's config.json alone, without weights or data.

    python scripts/memory.py --config config.json --plan.device a100-40gb --plan.max_length 8192 --lora.r 64
    python scripts/memory.py --config config.json --plan.device a100-80gb --plan.devices 4 --plan.max_length 8192 \\
        --tuning.method full --train.fsdp true --train.gradient_checkpointing true

One pack of plan.max_length tokens, all with loss unless --targets says how many. Prints the memory of the worst moment
of a step by component, and seconds a pack; if that is more than the device has, what would fit (exit code 2).
"""

import argparse
import math
from pathlib import Path

from corax import cli
from corax.plan import devices, fast, fit, memory, model, speed, states
from corax.plan.devices import GB
from corax.settings.lora import LoraSettings
from corax.settings.plan import PlanSettings
from corax.settings.train import TrainSettings
from corax.settings.tuning import TuningSettings


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = cli.parser(__doc__, plan=PlanSettings, lora=LoraSettings, tuning=TuningSettings, train=TrainSettings)
    parser.add_argument("--config", required=True, type=Path, help="config.json of the base model")
    parser.add_argument("--targets", type=int, help="tokens of the pack that carry loss (default: all)")
    parser.add_argument("--document", type=int, help="tokens of a sample (default: plan.max_length)")
    return parser


def main(args: argparse.Namespace) -> None:
    """Print the table."""
    plan = cli.settings(args, PlanSettings, "plan")
    train = cli.settings(args, TrainSettings, "train")
    wanted = memory.Training(
        model=model.from_config(args.config),
        device=devices.get(plan.device, plan.devices, train.threads),
        ranks=plan.devices,
        lora=cli.settings(args, LoraSettings, "lora"),
        train=train,
        tuning=cli.settings(args, TuningSettings, "tuning"),
        tokens=plan.max_length,
        targets=args.targets or plan.max_length,
        longest_sample=args.document or plan.max_length,
        samples=math.ceil(plan.max_length / (args.document or plan.max_length)),
        packs_per_rank=math.ceil(plan.packs_per_step / plan.devices),
    )
    training = fit.decide(wanted)
    parts = fit.estimate(training)
    trained = states.trained_weights(training)
    reason = fast.unsupported(training)
    print(f"{training.model.parameters:,} weights, {trained:,} trained ({trained / training.model.parameters:.2%})")
    print(f"general engine: {reason}" if reason else f"fast layers, {fast.layers_kept(training)} kept")
    for each in parts:
        print(f"{each.bytes / GB:9.3f} GB  {each.component:<38} {each.how}")
    print(f"{memory.total(parts) / GB:9.3f} GB  of {training.device.memory / GB:.1f} GB of one {training.device.name}")
    seconds = speed.seconds_per_pack(training, training.tokens, training.targets, training.longest_sample)
    print(f"{seconds:.3g} s a pack, {training.tokens / seconds:,.0f} tokens/s on each device")
    fit.check(training)


if __name__ == "__main__":
    cli.run(main, build_parser())
