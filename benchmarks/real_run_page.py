"""The page about a real run: docs/results/real-run.md and .png from what benchmarks/real_run.sh brought back.

    python benchmarks/real_run_page.py OUTPUT

Reads seconds.json and the run's plan, manifests, evaluation.json and samples.parquet below OUTPUT/results/runs; the
weights need not be there. The run's own report is copied beside the page.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "scripts"))

from corax.artifact import manifest_path, read_manifest  # noqa: E402 - found below scripts/
from corax.confidence import wilson  # noqa: E402
from corax.errors import CoraxError  # noqa: E402
from corax.plots import save_png  # noqa: E402
from corax.report.content import Sample, by_setting, read_samples  # noqa: E402
from corax.report.documents import Adapter, Evaluation, HeldOutLoss, Merge, Plan, read  # noqa: E402
from corax.report.page import ONTO, count, decimals, interval, number, share, size  # noqa: E402
from corax.report.plots import fidelity_figure  # noqa: E402

FOLDER = REPOSITORY / "docs" / "results"
NAME = "real-run"


class Output:
    """What a run left in the folder `root`."""

    def __init__(self, root: Path) -> None:
        runs = sorted((root / "results" / "runs").glob("*/evaluation.json"))
        if len(runs) != 1:
            raise CoraxError(f"{root}/results/runs: {len(runs)} runs with an evaluation.json, must be one")
        run = runs[0].parent
        manifests = {name: read_manifest(manifest_path(run / name)) for name in ("adapter", "merged")}
        self.sampling = read_manifest(manifest_path(run / "samples.parquet")).content
        self.training = manifests["adapter"].content["run"]
        self.adapter = read(Adapter, json.dumps(manifests["adapter"].facts), manifests["adapter"].path)
        self.merge = read(Merge, json.dumps(manifests["merged"].facts), manifests["merged"].path)
        self.plan = read(Plan, (run / "plan" / "plan.json").read_text(), run / "plan" / "plan.json")
        self.evaluation = read(Evaluation, runs[0].read_text(), runs[0])
        self.samples = read_samples(run / "samples.parquet", self.evaluation)
        self.seconds: dict[str, float] = json.loads((root / "seconds.json").read_text())
        self.report = root / "results" / "report.html"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder that real_run.sh filled")
    parser.add_argument("--into", type=Path, default=FOLDER, help="folder of the page (default: docs/results)")
    args = parser.parse_args()
    try:
        output = Output(args.output)
    except CoraxError as error:
        sys.exit(f"error: {error}")
    args.into.mkdir(parents=True, exist_ok=True)
    (args.into / f"{NAME}.md").write_text(page(output))
    save_png(fidelity_figure(output.evaluation.task.targets), args.into / f"{NAME}.png")
    # Where the repository lay on that machine says nothing.
    (args.into / f"{NAME}.html").write_text(re.sub(r"(?:/[\w.-]+)+/scripts/", "scripts/", output.report.read_text()))
    print(args.into / f"{NAME}.md")


def page(output: Output) -> str:
    """The page as Markdown."""
    parts = [
        "# A real run",
        introduction(output),
        "## Outcome",
        outcome(output),
        "The best program of each class, over the sizes it was tested at:",
        f"![Fidelity of the best program of each class]({NAME}.png)",
        classes(output),
        "Why samples of the classes fail, each at the first size where it does:",
        reasons(output),
        "## The merged model against the adapter",
        merged(output),
        "## Plan, speed and memory",
        speed(output),
        "Seconds of each stage, loading included:",
        table(("stage", "seconds"), ((stage, f"{seconds:.0f}") for stage, seconds in output.seconds.items())),
    ]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def introduction(output: Output) -> str:
    """What was done, and with what."""
    plan, training = output.plan, output.training
    return (
        f"SmolLM2-135M-Instruct, tuned with QLoRA ({count(output.adapter.trainable_parameters)} trained parameters) on "
        f"{count(plan.train.samples)} of {count(round(plan.train.samples / plan.epochs, -2))} simulated experiments "
        f"({count(plan.train.tokens)} tokens) in {training['train_seconds']:.0f} seconds of training on "
        f"{training['ranks']} {training['device']}. Then it wrote {count(len(output.samples))} programs: "
        "for the 20 classes "
        "and for held-out prompts. Every figure below is computed by "
        "`benchmarks/real_run_page.py` from what `benchmarks/real_run.sh` brought back; the run's own report, with the "
        f"programs: [{NAME}.html]({NAME}.html)."
    )


def outcome(output: Output) -> str:
    """Shares of right programs by class and temperature, and the held-out loss."""
    task, loss = output.evaluation.task, output.evaluation.held_out
    drawn = [sample for sample in output.samples if not sample.held_out]
    rows = [
        ["programs for the classes: valid", *portion(drawn, "valid", "fits", "solved")],
        ["right for N = 0, 1, 2", *portion(drawn, "fits", "solved")],
        ["right for N = 0 … 4", *portion(drawn, "solved")],
    ]
    for each in by_setting(output.samples):
        name = f"temperature {each.temperature}, top-p {each.top_p}"
        for what, hits in (("valid", each.valid), ("N = 0, 1, 2", each.fits), ("N = 0 … 4", each.solved)):
            rows.append([f"{name}: {what}", *parts(hits, each.samples)])
    held_out = [sample for sample in output.samples if sample.held_out]
    rows += [
        ["programs for held-out prompts: valid", *portion(held_out, "valid", "fits", "solved")],
        ["right for N = 0, 1, 2", *portion(held_out, "fits", "solved")],
    ]
    solved = [target.label for target in task.targets if target.solved]
    fitting = [target.label for target in task.targets if target.fits]
    return "\n\n".join(
        [
            f"Classes with a program right for N = 0, 1, 2: {len(fitting)} of {len(task.targets)}"
            f" ({', '.join(fitting) or 'none'}). Classes solved, right for N = 0 … 4: {len(solved)}"
            f" ({', '.join(solved) or 'none'}).",
            table(("", "share", "95 %", "of"), rows),
            losses(loss),
        ]
    )


def portion(samples: Sequence[Sample], *verdicts: str) -> list[str]:
    """Of how many samples the verdict is one of these."""
    return parts(sum(sample.verdict in verdicts for sample in samples), len(samples))


def parts(hits: int, total: int) -> list[str]:
    """A share, its Wilson interval in per cent, and the number of samples."""
    return [
        share(hits / total if total else 0),
        interval([100 * bound for bound in wilson(hits, total)], 1),
        count(total),
    ]


def losses(loss: HeldOutLoss) -> str:
    """Base against tuned on the test part."""
    rows = [
        [name, decimals(each.loss), interval(each.intervals["loss"], 4), share(each.token_accuracy)]
        for name, each in (("base", loss.base), ("tuned and merged", loss.tuned))
    ]
    return (
        f"On {count(loss.samples)} test samples ({count(loss.target_tokens)} target tokens), loss in nats per target "
        "token:\n\n" + table(("", "loss", "95 %", "token accuracy"), rows)
    )


def classes(output: Output) -> str:
    """A line a class."""
    rows = []
    for target in output.evaluation.task.targets:
        best = [f"{value:.2f}" for value in target.best.fidelity] if target.best else ["no valid program"]
        counts = [count(target.samples), count(target.distinct)]
        rows.append(
            [target.label, *counts, share(target.valid), share(target.fits), share(target.solved), " ".join(best)]
        )
    return table(("class", "samples", "distinct", "valid", "N ≤ 2", "N ≤ 4", "fidelity of the best, N = 0 … 4"), rows)


def reasons(output: Output) -> str:
    """How many samples of the classes fail for each reason, most first."""
    found = sorted(output.evaluation.task.reasons.items(), key=lambda item: -item[1][0])
    return table(("reason", "samples"), ([reason, count(classes)] for reason, (classes, _) in found))


def merged(output: Output) -> str:
    """Losses of the adapter on its 4-bit base and of the merged models, and their divergence."""
    scores, merge = output.merge.scores, output.merge
    rows = [["adapter on the 4-bit base", decimals(scores.trained.loss), "0"]]
    for base, near in merge.tried.items():
        kept = " (kept)" if base == merge.base else ""
        rows.append([f"merged onto the {ONTO[base]}{kept}", decimals(near.loss), number(near.kl)])
    return (
        f"On {count(scores.samples)} validation samples ({count(scores.target_tokens)} target tokens), nats per target "
        "token:\n\n" + table(("", "loss", "mean KL(trained ‖ merged)"), rows)
    )


def speed(output: Output) -> str:
    """Planned against measured, and the tokens that were sampled."""
    plan, training, sampling = output.plan, output.training, output.sampling
    planned = plan.train.tokens / plan.steps / plan.seconds_per_step
    peak = training.get("peak_gpu_bytes")
    rows = [
        ["training, tokens a second", count(planned), count(training["tokens_per_second"])],
        ["training, peak memory of tensors", size(plan.memory_allocated_bytes), size(peak) if peak else "–"],
        ["sampling, tokens a second", "", count(sampling["run"]["tokens_per_second"])],
        ["sampling, tokens", "", count(sampling["facts"]["tokens"])],
    ]
    return table(("", "planned", "measured"), rows)


if __name__ == "__main__":
    main()
