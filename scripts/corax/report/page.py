"""The report's HTML: the template filled with runs and figures."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from corax import __version__
from corax.chain import Link
from corax.confidence import wilson
from corax.plots import loss_figure
from corax.progress import clock
from corax.report.comparison import NONE, Comparison, comparisons, differing_settings
from corax.report.content import Run
from corax.report.plots import comparison_figure, fidelity_figure, lengths_figure, rate_figure, svg

ONTO = {"original": "original 16-bit base", "nf4": "base as training saw it, through 4 bits"}
"""What the adapter was added onto, by `merge.base`."""
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def render(runs: list[Run], template: Path) -> str:
    """The page about `runs`; `template` is report.html.j2, with report.css beside it.

    The page depends on the artifacts alone. What differs from one execution of a stage to the next (times,
    hosts, commands) stands in elements of class `measured`.
    """
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FileSystemLoader(template.parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (clock, count, decimals, interval, number, share, signed_share, size)
    named = {each.__name__: each for each in filters}
    environment.filters |= named
    environment.globals |= named | {"onto": ONTO, "wilson": wilson}
    links = {link.path: link for run in runs for link in run.chain}
    return environment.get_template(template.name).render(
        runs=runs,
        figures={run.name: figures(run, f"figure-{number}") for number, run in enumerate(runs, 1)},
        comparisons=[(each, comparison_svg(each, f"comparison-{n}")) for n, each in enumerate(comparisons(runs), 1)],
        differing=list(differing_settings(runs).items()),
        links=list(links.values()),
        stages=stages(links.values()),
        version=__version__,
    )


def figures(run: Run, prefix: str) -> dict[str, Markup]:
    """The figures of a run by name; their ids begin with `prefix`."""
    scores, plan, adapter = run.evaluation.held_out, run.plan, run.adapter
    metrics = [metric.model_dump(exclude_none=True) for metric in run.metrics]
    return {
        "loss": svg(
            loss_figure(metrics),
            f"{prefix}-loss",
            f"Training and validation loss over {run.steps} optimizer steps. The adapter is that of step "
            f"{adapter.written_step}, with a validation loss of {adapter.validation_loss:.3f}.",
        ),
        "rate": svg(rate_figure(run.metrics), f"{prefix}-rate", "Learning rate over the optimizer steps."),
        "fidelity": svg(
            fidelity_figure(run.evaluation.task.targets),
            f"{prefix}-fidelity",
            f"Fidelity of the best program of each class over the size N: {len(run.fitting)} classes are right for "
            f"N = 0, 1, 2 and {len(run.solved)} for all tested N.",
        )
        if run.evaluation.task.targets
        else Markup(),
        "lengths": svg(
            lengths_figure(plan),
            f"{prefix}-lengths",
            f"Histogram of the lengths of {sum(plan.lengths.counts)} training samples against a context of "
            f"{plan.max_length} tokens; {scores.samples} held-out samples are evaluated.",
        ),
    }


def comparison_svg(comparison: Comparison, name: str) -> Markup:
    """The figure of a comparison, its ids begin with `name`; empty where the runs differ in no setting."""
    if not comparison.settings:
        return Markup()
    label = f"Validation loss of {len(comparison.runs)} runs by setting; the lowest is that of {comparison.best.name}."
    return svg(comparison_figure(comparison), name, label)


def stages(links: Iterable[Link]) -> dict[str, int]:
    """How many artifacts each stage made, upstream first."""
    result: dict[str, int] = {}
    for link in links:
        if link.manifest:
            stage = link.manifest.content["stage"]
            result[stage] = result.get(stage, 0) + 1
    return result


def count(value: float) -> str:
    """A whole number with separators."""
    return f"{value:,.0f}"


def share(value: float) -> str:
    """A share between 0 and 1 in per cent, with a decimal where it has one."""
    return f"{100 * value:.1f}".removesuffix(".0") + "\N{NO-BREAK SPACE}%"


def decimals(value: float, digits: int = 4) -> str:
    """A figure with so many decimals, with a true minus sign."""
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def interval(bounds: list[float], digits: int | None = None) -> str:
    """[low, high] of a share in per cent, or of a figure with so many decimals."""
    if digits is None:
        low, high = (f"{100 * bound:.0f}" for bound in bounds)
    else:
        low, high = (decimals(bound, digits) for bound in bounds)
    return f"{low} to {high}"


def signed_share(value: float) -> str:
    """A relative change in per cent, with its sign."""
    text = f"{100 * value:+.0f}".replace("-", "\N{MINUS SIGN}")
    return ("0" if text[1:] == "0" else text) + "\N{NO-BREAK SPACE}%"


def size(value: float) -> str:
    """Bytes in a decimal unit."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} B"


def number(value: Any, digits: int = 3) -> str:
    """A figure with so many significant digits, small ones with a power of ten; a dash for one that is not known."""
    if value is None:
        return NONE
    text = f"{value:,.{digits}g}"
    mantissa, _, exponent = text.partition("e")
    if exponent:
        text = f"{mantissa} · 10{str(int(exponent)).translate(SUPERSCRIPT)}"
    return text.replace("-", "\N{MINUS SIGN}")
