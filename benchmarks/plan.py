"""The plan against measurements, and against the known figures of other projects: tables, a plot and JSON.

    python benchmarks/plan.py                        (compare with what is measured already; seconds on a CPU)
    python benchmarks/plan.py --measure              (on one GPU: measure 17 settings first, under 150 s)
    python benchmarks/plan.py --measure --tiny --output /tmp/x    (every line of it on a CPU)

Reads benchmarks/results/training.json and plan-measured.json; writes benchmarks/results/plan.json, docs/results/plan.md
and plan.png.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import matplotlib
import matplotlib.figure
from plan_settings import SETTINGS, TINY, Setting, config, measure
from table import Row, write

from corax import plots
from corax.plan import architectures, devices, fit, general, memory, model, speed, states
from corax.plan.devices import GB
from corax.plan.memory import Training
from corax.settings.lora import LoraSettings
from corax.settings.train import TrainSettings
from corax.settings.tuning import TuningSettings

HERE = Path(__file__).parent
CONFIGS = HERE.parent / "tests" / "data" / "configs"
MEASURED = "plan-measured.json"
NOT_USED = "not used here"
MEMORY_GOAL, TIME_GOAL = 0.05, 0.15
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


@dataclass(frozen=True)
class Figure:
    """One figure, planned and measured (or known): `error` is the difference's share of the measured one."""

    name: str
    planned: float
    measured: float
    unit: str
    note: str = ""

    @property
    def error(self) -> float:
        """Relative."""
        return self.planned / self.measured - 1


def main() -> None:
    """Measure if asked, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure on this machine's GPU first")
    parser.add_argument("--seconds", type=float, default=150, help="time for measuring")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the program")
    parser.add_argument("--output", type=Path, help="one folder for all files (default: where they are kept)")
    args = parser.parse_args()
    results = args.output or HERE / "results"
    pages = args.output or HERE.parent / "docs" / "results"
    pages.mkdir(parents=True, exist_ok=True)
    if args.measure:
        measure(TINY if args.tiny else SETTINGS, results / MEASURED, args.seconds)
    settings = json.loads((results / MEASURED).read_text()) if (results / MEASURED).is_file() else []
    found = [*ours(), *others(), *(figure for row in settings if "failed" not in row for figure in of_setting(row))]
    peaks, times = ([figure for figure in found if figure.unit == unit] for unit in ("GB", "ms"))
    rows = [_row(figure, None if figure.note == NOT_USED else MEMORY_GOAL) for figure in peaks] + [
        _row(figure, TIME_GOAL) for figure in times
    ]
    write("plan", rows + [_row(figure, None) for figure in known()], results)
    (pages / "plan.md").write_text(page(peaks, times))
    plot(peaks, times, pages / "plan.png")


def training(
    name: str,
    r: int = 64,
    dropout: float = 0.0,
    targets: int = 8192,
    tokens: int = 8192,
    device: str = "h100-80gb",
    method: str = "lora",
    modules: list[str] | None = None,
    ranks: int = 1,
    packs: int = 1,
    **train: Any,
) -> Training:
    """A training of one of the models in tests/data/configs, from its configuration alone."""
    return Training(
        model=model.from_config(CONFIGS / f"{name}.json"),
        device=devices.GPUS[device],
        ranks=ranks,
        lora=LoraSettings(r=r, lora_dropout=dropout, target_modules=modules or ["all-linear"]),
        train=TrainSettings(**train),
        tuning=TuningSettings.model_validate({"method": method}),
        tokens=tokens,
        targets=targets,
        longest_sample=min(tokens, 1132),
        packs_per_rank=packs,
    )


def ours() -> Iterator[Figure]:
    """This project's own engines, measured by benchmarks/training.py on an H100 (8,192 tokens, r = 64)."""
    rows = {row["name"]: row["value"] for row in json.loads((HERE / "results" / "training.json").read_text())["rows"]}
    cases = [("ours, 80 GB", 32, True), ("ours, deterministic", 32, True), ("ours, 40 GB", 32, False)]
    for name, kept, dequantised in [*cases, ("ours, 12 GB", 1, False), ("ours, Unsloth's memory", 0, False)]:
        # Packs of quantum_lengths.json: 4,443 of 8,189 tokens carry loss, 488 a sample.
        run = training("llama-3-8b", targets=4699, layers_kept=kept, dequantised_base=dequantised)
        words = f"Llama-3-8B, {kept} of 32 layers kept{', dequantised base kept' if dequantised else ''}"
        words += ", deterministic" if name.endswith("deterministic") else ""
        yield Figure(words, memory.allocated(fit.estimate(run)) / GB, rows[f"{name}: peak memory"], "GB")
        seconds = speed.seconds_per_pack(run, 8189, 4443, 488) + speed.optimizer_seconds(run)
        yield Figure(words, 1000 * seconds, 1000 * 8189 / rows[name], "ms")


def others() -> Iterator[Figure]:
    """Other ways to train Llama-3-8B on 8,192 tokens, all in the loss, measured by hand on an H100."""
    plain = training("llama-3-8b", dropout=0.05, gradient_checkpointing=True)
    peak = memory.allocated(states.fixed(plain)) + memory.total(general.moving(plain))
    words = "Llama-3-8B, transformers and peft, checkpointing, dropout 0.05"
    yield Figure(words, peak / GB, 22.7, "GB", "the worst moment is the loss")
    yield Figure(words, 1000 * speed.general_seconds(plain, 8192, 8192, 8192, True), 1000 * 8192 / 7007, "ms")
    # prepare_model_for_kbit_training: embedding, head and norms in float32, and with them the residual stream.
    wide = 2 * (plain.model.parameters - plain.model.linear_parameters) + 2 * 32 * 8192 * 4096
    yield Figure("the same after prepare_model_for_kbit_training", (peak + wide) / GB, 28.0, "GB", NOT_USED)
    for words, kept, wide_adapter, measured in (
        ("the same with liger's kernels, float32 adapters, dropout 0.05", 0, True, 11.6),
        ("the same, 16-bit adapters", 0, False, 10.7),
        ("the same, 16 of 32 layers kept", 16, False, 29.7),
        ("the same, 24 of 32 layers kept", 24, False, 39.2),
        ("the same, all layers kept", 32, False, 47.3),
    ):
        yield Figure(words, _with_liger(plain, kept, wide_adapter) / GB, measured, "GB", NOT_USED)


def _with_liger(plain: Training, kept: int, wide_adapter: bool) -> float:
    """Bytes of autograd with fused norms, rotation, swiglu and loss.

    A layer keeps the inputs of both norms and of the adapters, query, key and value before and after rotation,
    attention's output, gate and up, and low-rank values; with dropout each adapter has its own input and mask.
    """
    tokens, base, adapter = 8192, memory.total(states.base(plain)), 167_772_160
    widths = 2 * 4096 + 2 * (4096 + 2 * 1024) + 4096 + 2 * 14336 + 7 * 64
    inputs_of_adapters = (6 * 4096 + 14336) * 3 if wide_adapter else (2 * 4096 + 14336) * 2
    layer = tokens * (widths * 2 + inputs_of_adapters)
    states_bytes = adapter * (12 if wide_adapter else 6)
    inputs, work = 32 * tokens * 4096 * 2, tokens * 3 * 14336 * 2
    return base + states_bytes + inputs + kept * layer + (layer if kept < 32 else 0) + work


def of_setting(row: dict[str, Any]) -> Iterator[Figure]:
    """A setting measured by plan_settings.py."""
    setting = Setting(**{key: row[key] for key in Setting.__dataclass_fields__})
    description = config(setting)
    run = Training(
        model=model.describe(description, architectures.shapes(description)),
        device=_device(row["device"]),
        ranks=1,
        lora=LoraSettings(r=setting.r, lora_dropout=setting.dropout),
        train=TrainSettings.model_validate(
            {
                "bits": setting.bits,
                "gradient_checkpointing": setting.checkpointing,
                "layers_kept": setting.kept,
                "dequantised_base": setting.dequantised,
            }
        ),
        tuning=TuningSettings(),
        tokens=row["tokens"],
        targets=row["targets"],
        longest_sample=1132,
        packs_per_rank=setting.packs,
    )
    is_general = setting.kept is None
    if row["peak_bytes"]:
        moving = general.moving(run) if is_general else []
        parts = states.fixed(run) + moving if is_general else fit.estimate(run)
        yield Figure(row["name"], memory.allocated(parts) / GB, row["peak_bytes"] / GB, "GB")
    numbers = (row["tokens"], row["mean_targets"], row["document"])
    pack = speed.general_seconds(run, *numbers, True) if is_general else speed.seconds_per_pack(run, *numbers)
    yield Figure(row["name"], 1000 * (setting.packs * pack + speed.optimizer_seconds(run)), 1000 * row["seconds"], "ms")


def _device(name: str) -> devices.Device:
    """The planned device of a GPU with this name."""
    for part, device in (("H100", "h100-80gb"), ("H200", "h200-141gb"), ("A100", "a100-80gb")):
        if part in name:
            return devices.GPUS[device]
    return devices.get("cpu", 1, 2)


def known() -> Iterator[Figure]:
    """Figures of other projects, from the configurations alone; `note` explains a difference."""
    for bits, figure in ((32, 32.1), (8, 9.1), (4, 5.59)):
        yield Figure(f"pricer: Llama-3.1-8B in {bits} bits", footprint("llama-3.1-8b", bits), figure, "GB")
    adapter = training("llama-3.1-8b", r=32, modules=ATTENTION)
    trained = states.trained_parameters(adapter.model, adapter.lora, adapter.tuning)
    both = footprint("llama-3.1-8b", 4) + 4 * trained / GB
    yield Figure("pricer: in 4 bits with adapter", both, 5.70, "GB", "float32 adapter, r = 32 on attention")
    yield Figure("pricer: adapter file", 4 * trained / 1e6, 109, "MB")

    qlora = training("starcoder", r=32, gradient_checkpointing=True, device="a100-40gb")
    trained = states.trained_parameters(qlora.model, qlora.lora, qlora.tuning)
    share = 100 * trained / (qlora.model.parameters + trained)
    yield Figure("starcoder: trained share", share, 0.7, "%", "r = 32 on all linear layers")
    fixed = memory.allocated(states.fixed(qlora)) + states.gradients(qlora).bytes
    yield Figure("starcoder: static, QLoRA", fixed / GB, 10, "GB", "base, adapter, gradients, moments")
    note = "known: read from the driver, other losses and upcasts (docs/plan.md)"
    yield Figure("starcoder: QLoRA, 4 × 2,048 tokens", memory.total(fit.estimate(qlora)) / GB, 26, "GB", note)
    full = training("starcoder", method="full", gradient_checkpointing=True, device="a100-80gb", ranks=4, fsdp=True)
    static = 4 * (memory.allocated(states.fixed(full)) + states.gradients(full).bytes)
    yield Figure("starcoder: full fine-tuning, 16 bytes a weight", static / GB, 248, "GB")
    several = memory.total(fit.estimate(replace(full, packs_per_rank=2))) / GB
    yield Figure("starcoder: sharded over four cards, each", several, 73.8, "GB", "known: 70 to 77.6")


def footprint(name: str, bits: int) -> float:
    """GB as transformers' get_memory_footprint counts: linear layers in so many bits, without their constants."""
    found = model.from_config(CONFIGS / f"{name}.json")
    rest = found.parameters - found.quantised_parameters
    return (found.quantised_parameters * bits / 8 + rest * (4 if bits == 32 else 2)) / GB


def page(peaks: list[Figure], times: list[Figure]) -> str:
    """docs/results/plan.md."""
    own = {"peaks": [each for each in peaks if each.note != NOT_USED], "step times": times}
    worst = [
        f"{len(rows)} {name}, the worst {max(abs(each.error) for each in rows):.1%} off" for name, rows in own.items()
    ]
    parts = [
        "# The plan against measurements\n",
        f"Made by `make bench-plan`. Of corax's own engines {'; '.join(worst)}.\n",
        "How the plan counts, and why known figures differ: [plan.md](../plan.md).\n",
        "![planned against measured](plan.png)\n",
        "## Peak memory of PyTorch's allocator, GB\n",
        _table(peaks, "measured"),
        f"`{NOT_USED}`: measured to see what other software takes, and counted in the same way; no goal.\n",
        "## Milliseconds of a step\n",
        _table(times, "measured"),
        "## Known figures of other projects, from the configurations alone\n",
        _table(list(known()), "known"),
        "## Memory footprints of the pricer's models, GB\n",
        _footprints(),
    ]
    return "\n".join(parts)


def _table(figures: list[Figure], against: str) -> str:
    lines = [f"| | planned | {against} | difference | |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {each.name} | {each.planned:,.4g} {each.unit} | {each.measured:,.4g} | {each.error:+.1%} | {each.note} |"
        for each in figures
    ]
    return "\n".join(lines) + "\n"


def _footprints() -> str:
    lines = ["| | 32 bits | 8 bits | 4 bits | 4 bits, constants counted | with adapter | adapter file |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for name in ("llama-3.1-8b", "qwen2.5-7b", "gemma-2-9b", "phi-3-medium"):
        modules = ["qkv_proj", "o_proj"] if name.startswith("phi") else ATTENTION
        run = training(name, r=32, modules=modules)
        adapter = 4 * states.trained_parameters(run.model, run.lora, run.tuning) / GB
        whole = memory.total(states.base(run)) / GB
        small = " | ".join(f"{footprint(name, bits):.2f}" for bits in (32, 8, 4))
        lines.append(f"| {name} | {small} | {whole:.2f} | {whole + adapter:.2f} | {1000 * adapter:.0f} MB |")
    return "\n".join(lines) + "\n"


def plot(peaks: list[Figure], times: list[Figure], path: Path) -> None:
    """The plan's error over what was measured, with the goals as bands."""
    with matplotlib.rc_context(plots.STYLE):
        figure = matplotlib.figure.Figure(figsize=(8, 3.4), layout="constrained")
        panels = ((peaks, "measured peak memory (GB)", MEMORY_GOAL), (times, "measured step (ms)", TIME_GOAL))
        for axes, (rows, label, goal) in zip(figure.subplots(1, 2), panels, strict=True):
            axes.axhspan(-100 * goal, 100 * goal, color=plots.GREEN, alpha=0.12, label=f"goal: ± {goal:.0%}")
            axes.axhline(0, color=plots.GREY, linewidth=0.8)
            for color, name, other in ((plots.BLUE, "corax", False), (plots.ORANGE, "other software", True)):
                shown = [each for each in rows if (each.note == NOT_USED) == other]
                points = [each.measured for each in shown], [100 * each.error for each in shown]
                axes.plot(*points, "o", color=color, markersize=5, label=name if shown else None)
            axes.set(xlabel=label, ylabel="planned − measured (%)", xlim=(0, None))
            axes.legend(fontsize=8)
        plots.save_png(figure, path)


def _row(figure: Figure, goal: float | None) -> Row:
    against = f"measured {figure.measured:,.4g} {figure.unit}, planned {figure.planned:,.4g}"
    return Row(figure.name, abs(figure.error), "of it", against, at_most=goal)


if __name__ == "__main__":
    main()
