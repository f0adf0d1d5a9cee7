"""Train a LoRA adapter on a 4-bit base: QLoRA (arXiv 2305.14314), on a CPU or on any number of GPUs.

--tuning.method trains all weights or another of peft's methods instead, --train.bits says how the base is kept.

    python scripts/train.py --model results/models/m --plan results/runs/r/plan \\
        --tokens results/datasets/d/tokens/m/000 --work work/r --output results/runs/r/adapter --lora.r 64

    python scripts/launch.py --ranks 4 scripts/train.py …    (one process a GPU)

Reads the packs in the plan's order and writes adapter_model.safetensors, adapter_config.json, metrics.jsonl
and loss.png. Checkpoints lie in --work; started again with the same options it goes on after the newest one
and ends with the same bytes. SIGTERM or SIGUSR1 stops it after the step at hand with a checkpoint (exit code 75; with
several ranks up to two steps later). --train.tensorboard writes curves to logs/tensorboard/<name of --work>.
"""

from corax import stop

if __name__ == "__main__":
    stop.hold()

import argparse
import json
import logging
import os
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from corax import cli, hardware
from corax.architecture import is_encoder_decoder
from corax.artifact import Artifact, open_artifact
from corax.fingerprint import fingerprint
from corax.lock import lock
from corax.model import load_base
from corax.plots import plot_loss
from corax.settings import tuning as tuning_settings
from corax.settings.lora import LoraSettings
from corax.settings.train import TrainSettings
from corax.settings.tuning import TuningSettings
from corax.tokens import TokenShards
from corax.train import checkpoint, sharded
from corax.train.adapter import add_adapter, save, start_on_changed_base
from corax.train.curves import Curves
from corax.train.engine import make_engine
from corax.train.isolation import check_isolation
from corax.train.loop import Loop, TrainingPaused
from corax.train.optimization import trained
from corax.train.packs import Packs
from corax.train.probe import Probe, probe
from corax.train.validation import best_validation

NO_EFFECT = {"save_steps", "save_total_limit", "tensorboard"}
"""Settings that do not change the adapter: a run goes on although they differ."""
TENSORBOARD = Path("logs", "tensorboard")
"""Folder of TensorBoard's curves, each run's named as its folder for checkpoints."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.parser(__doc__, tuning=TuningSettings, lora=LoraSettings, train=TrainSettings)
    parser.add_argument("--model", required=True, type=Path, help="base model folder")
    parser.add_argument("--plan", required=True, type=Path, help="plan folder")
    parser.add_argument("--tokens", required=True, type=Path, nargs="+", help="token folders, one for each shard")
    parser.add_argument("--work", required=True, type=Path, help="folder for checkpoints")
    parser.add_argument("--output", required=True, type=Path, help="adapter folder")
    return parser


def main(args: argparse.Namespace) -> None:
    """Train; see the module's docstring."""
    with stop.StopRequest() as request:
        _train(args, request)


def _train(args: argparse.Namespace, request: stop.StopRequest) -> None:
    lora = cli.settings(args, LoraSettings, "lora")
    train = cli.settings(args, TrainSettings, "train")
    tuning = cli.settings(args, TuningSettings, "tuning")
    inputs = [args.model, args.plan, *args.tokens]
    plan = _read_plan(args.plan)
    state = PartialState(cpu=not torch.cuda.is_available())
    tuning_settings.check(tuning, lora, train, plan["packing"], state.num_processes, is_encoder_decoder(args.model))
    if not state.is_main_process:
        cli.log.setLevel(logging.WARNING)
    checkpoints = args.work / _fingerprint(inputs, tuning, lora, train)
    with lock(args.work) if state.is_main_process else nullcontext():
        device = hardware.device()
        hardware.deterministic(train.seed, train.threads, strict=train.deterministic and device.type == "cuda")
        state.wait_for_everyone()  # until the first rank has the lock another training may change the checkpoints
        packs = Packs(args.plan, TokenShards(args.tokens, "train"), "train")
        validation = Packs(args.plan, TokenShards(args.tokens, "validation"), "validation")
        model = _model(args.model, tuning, lora, train, device)
        start = start_on_changed_base(model)
        engine = make_engine(model, _as_planned(train, plan), longest=plan["max_length"])
        check_isolation(engine, packs.batch(0))
        # On a CPU the plan needs no confirmation that costs two steps.
        probed = probe(engine, packs, train, plan) if device.type == "cuda" else None
        cli.log.info(
            "%d steps of %d packs on %d × %s", plan["steps"], len(packs.of_step(0)), state.num_processes, device.type
        )
        curves = Curves(TENSORBOARD / args.work.name if train.tensorboard and state.is_main_process else None)
        loop = Loop(engine, packs, validation, train, checkpoints, request, curves)
        segments = checkpoint.record_segment(checkpoints) if state.is_main_process else []
        try:
            with curves:
                metrics = loop.run()
        except TrainingPaused as pause:
            cli.log.info("%s; run again to go on", pause)
            sys.exit(cli.PAUSED)
        if train.fsdp and not state.is_main_process:
            sharded.take_part(model, args.model)
        if state.is_main_process:
            sections = {"tuning": tuning, "lora": lora, "train": train}
            with Artifact(args.output, stage="train", inputs=inputs, settings=sections) as artifact:
                save(model, artifact.path, start, args.model)
                _describe(artifact, train, metrics, loop, segments, probed)
            shutil.rmtree(checkpoints)
    state.destroy_process_group()


def _read_plan(folder: Path) -> dict[str, Any]:
    open_artifact(folder)
    content: dict[str, Any] = json.loads((folder / "plan.json").read_text())
    return content


def _as_planned(train: TrainSettings, plan: dict[str, Any]) -> TrainSettings:
    """The settings with what the plan decided in the place of null."""
    decided = ("layers_kept", "dequantised_base")
    return train.model_copy(update={key: plan[key] for key in decided if plan[key] is not None})


def _fingerprint(inputs: list[Path], tuning: TuningSettings, lora: LoraSettings, train: TrainSettings) -> str:
    """A name for everything that decides the result, so that a checkpoint of another run is never used."""
    content = {
        "inputs": [_identity(path) for path in inputs],
        "tuning": tuning,
        "lora": lora,
        "train": train.model_dump(exclude=NO_EFFECT),
    }
    return fingerprint(content)


def _identity(path: Path) -> str:
    """Of a plan the packs alone: its estimates depend on the number of devices, and the result does not."""
    manifest = open_artifact(path)
    packs = manifest.files().get(path / "packs.parquet")
    return str(packs["sha256"]) if packs else manifest.digest


def _model(folder: Path, tuning: TuningSettings, lora: LoraSettings, train: TrainSettings, device: torch.device) -> Any:
    dtype = hardware.compute_dtype(device)
    kept = "all weights in float32" if tuning.method == "full" else f"{train.bits}-bit base"
    kept += ", divided over the ranks" if train.fsdp else ""
    cli.log.info("%s: %s, %s, compute in %s on %s", folder, tuning.method, kept, dtype, device)
    if train.fsdp:
        base = sharded.load(folder, device)
    else:
        base = load_base(folder, tuning.method, train.model_dump(), dtype, device)
    model = add_adapter(base, lora, train.seed, tuning, open_artifact(folder).facts.get("new_token_ids", ()))
    cli.log.info("%d trainable parameters", sum(parameter.numel() for parameter in trained(model).values()))
    return model


def _describe(
    artifact: Artifact,
    train: TrainSettings,
    metrics: list[dict[str, Any]],
    loop: Loop,
    segments: list[str | None],
    probed: Probe | None,
) -> None:
    if (artifact.path / "adapter_config.json").is_file():
        _sort_lists(artifact.path / "adapter_config.json")
    (artifact.path / "metrics.jsonl").write_text(checkpoint.metric_lines(metrics))
    plot_loss(artifact.path / "loss.png", metrics)
    validations = {row["step"]: row for row in metrics if "validation_loss" in row}
    last, best = max(validations), best_validation(metrics)
    written = best if train.load_best_model_at_end else last
    artifact.note(
        steps=last,
        planned_steps=loop.steps,
        stopped=validations[last].get("stopped"),
        written_step=written,
        best_step=best,
        trainable_parameters=sum(parameter.numel() for parameter in loop.parameters),
        compute_dtype=str(hardware.compute_dtype(loop.device)).removeprefix("torch."),
        validation_loss=validations[written]["validation_loss"],
    )
    artifact.measured(
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        ranks=loop.ranks,
        segments=len(segments),
        slurm_jobs=list(dict.fromkeys(job for job in segments if job)),
        tokens_per_second=round(loop.tokens_per_second, 1),
        train_seconds=round(loop.seconds, 1),
        peak_gpu_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        **(probed.content() if probed else {}),
    )


def _sort_lists(path: Path) -> None:
    """peft writes sets in an order that differs from process to process."""
    config = json.loads(path.read_text())
    ordered = {key: sorted(value) if isinstance(value, list) else value for key, value in sorted(config.items())}
    path.write_text(json.dumps(ordered, indent=2) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    cli.run(main, build_parser())
