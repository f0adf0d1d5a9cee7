"""Add a trained adapter onto the base: a model folder that plain transformers loads.

    python scripts/merge.py --model results/models/smollm2-135m --adapter results/runs/demo/adapter \\
        --tokens results/datasets/quantum-short/tokens/smollm2-135m/000 --output results/runs/demo/merged

Each weight with an adapter becomes W + scale · B·A, summed in float32 and rounded once to the type of the original;
the configuration, tokenizer and all else are copied. W is the 16-bit original, or that weight as training saw it,
through 4 bits; by default both are made, compared with the adapter on its 4-bit base on held-out samples, and the
nearer one is kept. The README.md in the folder is its model card: base, licence, data, plan, scores, how to rebuild.
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from corax import architecture, cli, hardware
from corax.artifact import Artifact, Manifest, open_artifact
from corax.errors import CoraxError
from corax.evaluation import first_rows
from corax.merge.generation import write_generation
from corax.merge.lora import is_plain, read_adapter
from corax.merge.model_card import model_card
from corax.merge.quantisation import seen_in_training
from corax.merge.scores import compare, nearest, scoring_device
from corax.merge.unmerged import write_beside, write_weights
from corax.merge.variants import read_changes, write_changed
from corax.merge.weights import Bases, write_merged
from corax.settings.merge import MergeSettings
from corax.settings.train import TrainSettings
from corax.tokens import TokenShards, check_tokenizer

MERGED = ("lora", "ia3")
"""Methods whose result is added onto the base's weights."""


def build_parser() -> argparse.ArgumentParser:
    """Options of this stage."""
    parser = cli.parser(__doc__, merge=MergeSettings)
    parser.add_argument("--model", required=True, type=Path, help="folder of the base model")
    parser.add_argument("--adapter", required=True, type=Path, help="folder of the adapter")
    parser.add_argument("--tokens", required=True, type=Path, nargs="+", help="token shards, in order")
    parser.add_argument("--max-length", type=int, help="pass over longer samples (tokens), as training did")
    parser.add_argument("--output", required=True, type=Path, help="folder to make")
    return parser


def main(args: argparse.Namespace) -> None:
    """Make the artifact `args.output`."""
    settings = cli.settings(args, MergeSettings, "merge")
    base, adapter = open_artifact(args.model), open_artifact(args.adapter)
    check_same_base(base, adapter)
    shards = TokenShards(args.tokens, "validation")
    check_tokenizer(base, shards)
    rows = first_rows(shards, settings.held_out_samples, architecture.context(args.model), args.max_length)
    train = TrainSettings().model_dump() | adapter.content["settings"].get("train", {})
    method = adapter.content["settings"].get("tuning", {}).get("method", "lora")
    names = bases(settings, method in MERGED and train["bits"] == 4)
    hardware.deterministic(0, settings.threads)
    device = hardware.device()
    dtype = hardware.compute_dtype(device)
    inputs = [args.model, args.adapter, *args.tokens]
    resolved = {"max_length": args.max_length, "merge": settings}
    with Artifact(args.output, stage="merge", inputs=inputs, settings=resolved) as artifact:
        began = time.monotonic()
        candidates = {name: artifact.path / f".{name}" for name in names}
        seen: dict[Path, Bases] = {}
        for name, folder in candidates.items():
            copy_all_but_weights(base, folder)
            write_generation(folder, shards.facts["template"])
            seen[folder] = seen_in_training(args.model, train, trained_in(adapter, dtype)) if name == "nf4" else {}
        if method in MERGED and is_plain(args.adapter):
            lora, factors = args.adapter / "adapter_model.safetensors", read_adapter(args.model, args.adapter)
            write_merged(args.model, lora, factors, seen, settings.threads)
        else:
            for folder in candidates.values():
                write_one(args.model, args.adapter, method, folder, seen[folder], dtype, device)
        merged = time.monotonic()
        scored_on = scoring_device(args.model, device)
        dtype = hardware.compute_dtype(scored_on)
        scores = compare(args.model, args.adapter, candidates, shards, rows, method, train, dtype, scored_on)
        seconds = {"merge_seconds": round(merged - began, 1), "score_seconds": round(time.monotonic() - merged, 1)}
        kept = nearest(scores, names)
        for path in candidates[kept].iterdir():
            path.rename(artifact.path / path.name)
        for folder in candidates.values():
            shutil.rmtree(folder)
        card = model_card(base, adapter, plan_of(adapter), kept, scores, method)
        (artifact.path / "README.md").write_text(card, encoding="utf-8")
        artifact.note(method=method, base=kept, scores=scores, dtype=str(dtype).removeprefix("torch."))
        artifact.measured(device=str(device), scored_on=str(scored_on), **seconds)
    cli.log.info("%s, on the %s base: %s", method, kept, json.dumps(scores))


def write_one(
    model: Path, adapter: Path, method: str, output: Path, seen: Bases, dtype: torch.dtype, device: torch.device
) -> None:
    """Write the weights of what is no plain LoRA to the folder `output`."""
    if method == "full":
        write_weights(adapter, output)
    elif method in MERGED:
        write_changed(model, read_changes(model, adapter), output, seen)
    else:
        write_beside(model, adapter, method, output, dtype, device)


def bases(settings: MergeSettings, is_four_bit: bool) -> list[str]:
    """The bases to try; raises CoraxError for the 4-bit one where training saw no such base."""
    if settings.base == "nf4" and not is_four_bit:
        raise CoraxError("merge.base: 'nf4' found, but this adapter is no addition to a 4-bit base, allowed: original")
    if settings.base == "best":
        return ["original", "nf4"] if is_four_bit else ["original"]
    return [settings.base]


def check_same_base(base: Manifest, adapter: Manifest) -> None:
    """Raise CoraxError if the adapter was trained on other weights: shapes alone would not tell."""
    trained_on = adapter.content["inputs"]
    if base.digest not in [item["digest"] for item in trained_on]:
        found = ", ".join(f"{item['path']} ({item['digest'][:12]})" for item in trained_on)
        raise CoraxError(
            f"{adapter.artifact}: made from {found or 'nothing'}, not from {base.artifact} ({base.digest[:12]})"
        )


def copy_all_but_weights(base: Manifest, folder: Path) -> None:
    """Copy configuration, tokenizer, licence and so on; the base's own model card would be wrong."""
    folder.mkdir()
    for file in base.files():
        if file.suffix != ".safetensors" and file.name != "README.md":
            target = folder / file.relative_to(base.artifact)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def trained_in(adapter: Manifest, default: torch.dtype) -> torch.dtype:
    """The type that training computed in, by the adapter's facts."""
    return getattr(torch, adapter.facts["compute_dtype"]) if "compute_dtype" in adapter.facts else default


def plan_of(adapter: Manifest) -> dict[str, Any]:
    """The plan that the adapter was trained by; empty where it is not at hand."""
    for item in adapter.content["inputs"]:
        path = Path(item["path"]) / "plan.json"
        if path.is_file():
            return dict(json.loads(path.read_text(encoding="utf-8")))
    return {}


if __name__ == "__main__":
    cli.run(main, build_parser())
