"""The report's figures, as SVG that takes its colours from the page."""

import io
import re
from collections.abc import Sequence

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from corax.plots import BLUE, GREEN, GREY, INK, ORANGE, STYLE, new_figure
from corax.report.comparison import Comparison
from corax.report.content import SIZES_IN_PROMPT
from corax.report.documents import Metric, Plan, Target
from corax.settings.base import to_number

COLOURS = {INK: "var(--ink)", GREY: "var(--grey)", BLUE: "var(--blue)", ORANGE: "var(--orange)", GREEN: "var(--green)"}
MOST_PANELS = 4
"""Settings that the figure of a comparison shows; the table beside it has all."""
LABEL_GAP = 0.06
"""Least vertical distance of two names in the fidelity plot."""


def svg(figure: Figure, name: str, label: str) -> Markup:
    """`figure` as an <svg> element for a page: described by `label`, its ids begin with `name`."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", text)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    for colour, variable in COLOURS.items():
        text = text.replace(colour, variable)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1))  # noqa: S704 - matplotlib escapes


def rate_figure(metrics: Sequence[Metric]) -> Figure:
    """Learning rate over the steps."""
    rows = [(metric.step, metric.learning_rate) for metric in metrics if metric.learning_rate is not None]
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(1.5)
        axes.plot([step for step, _ in rows], [rate for _, rate in rows], color=GREEN)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("learning rate")
        axes.set_ylim(bottom=0)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return figure


def lengths_figure(plan: Plan) -> Figure:
    """Histogram of the training samples' lengths, with the longest that fits a pack."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(2.0)
        axes.stairs(plan.lengths.counts, plan.lengths.edges, fill=True, color=BLUE, alpha=0.75)
        axes.axvline(plan.max_length, color=ORANGE, linestyle="--")
        axes.annotate(
            f"context {plan.max_length}",
            (plan.max_length, 1.02),
            xycoords=("data", "axes fraction"),
            ha="right",
            color=ORANGE,
        )
        axes.set_xlabel("tokens in a sample")
        axes.set_ylabel("training samples")
        axes.set_xlim(left=0)
    return figure


def fidelity_figure(targets: Sequence[Target]) -> Figure:
    """Fidelity of each class's best program over N; a star where it first fails, named unless that is at N = 0."""
    curves = [(target.label, target.best) for target in targets if target.best]
    last = max((len(best.fidelity) for _, best in curves), default=5) - 1
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(3.8)
        axes.axvspan(-0.25, SIZES_IN_PROMPT - 0.5, color=GREY, alpha=0.15, linewidth=0)
        axes.annotate("training range", (0, 1.02), xycoords=("axes fraction", "axes fraction"), color=GREY)
        names: list[tuple[int, float, str]] = []
        for label, best in curves:
            fidelity = best.fidelity
            failure = best.first_failure if best.first_failure < len(fidelity) else None
            colour = BLUE if failure is None else ORANGE if failure >= SIZES_IN_PROMPT else GREY
            axes.plot(range(len(fidelity)), fidelity, color=colour, linewidth=1.4, alpha=0.9, marker=".", markersize=4)
            if failure is not None:
                axes.plot(failure, fidelity[failure], "*", color=colour, markersize=9)
            if failure != 0:
                size = last if failure is None else failure
                names.append((size, fidelity[size], label))
        _write_names(axes, names)
        axes.set_xlim(-0.25, last + 1)
        axes.set_ylim(-0.04, 1.06)
        axes.set_xticks(range(last + 1))
        axes.set_xlabel("size N (4 + 2N particles)")
        axes.set_ylabel("fidelity")
    return figure


def comparison_figure(comparison: Comparison) -> Figure:
    """Validation loss over the values of each setting in which the runs differ; the best run is a star."""
    losses = [run.adapter.validation_loss for run in comparison.runs]
    settings = list(comparison.settings.items())[:MOST_PANELS]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(5.4, 2.2 * len(settings)), 2.6), layout="constrained")
        for axes, (key, values) in zip(
            figure.subplots(1, len(settings), sharey=True, squeeze=False)[0], settings, strict=True
        ):
            names = sorted(set(values), key=_in_order)
            places = [names.index(value) for value in values]
            axes.plot(places[1:], losses[1:], "o", color=GREY, markersize=6, alpha=0.8)
            axes.plot(places[0], losses[0], "*", color=BLUE, markersize=13)
            axes.set_xticks(range(len(names)), names)
            axes.set_xlim(-0.5, len(names) - 0.5)
            axes.set_xlabel(key.rpartition(".")[2])
        figure.axes[0].set_ylabel("validation loss\n(nats per target token)")
    return figure


def _in_order(value: str) -> tuple[bool, float, str]:
    """Numbers by size, then texts."""
    number = to_number(value)
    return (True, 0.0, value) if isinstance(number, str) else (False, number, value)


def _write_names(axes: Axes, names: list[tuple[int, float, str]]) -> None:
    """Names beside their points, moved apart where they would overlap."""
    for size in sorted({size for size, _, _ in names}):
        here = sorted((-fidelity, label) for each, fidelity, label in names if each == size)
        gap = min(LABEL_GAP, 1 / len(here))
        heights = [-height for height, _ in here]
        for place in range(1, len(here)):
            heights[place] = min(heights[place], heights[place - 1] - gap)
        for place in range(len(here)):
            heights[place] = max(heights[place], (len(here) - 1 - place) * gap)
        for height, (_, label) in zip(heights, here, strict=True):
            axes.annotate(label, (size + 0.08, height), va="bottom", fontsize=8)
