"""One HTML page about one or more runs, to open in a browser, send to a colleague, or print.

    python scripts/report.py --runs results/runs/demo results/runs/other --output results/report.html

Shows what was trained on what and with which outcome, the runs side by side, for each run its learning curve,
classes, samples, plan and settings, and the provenance of every artifact. The page needs no other file and no
network. Reads plan/, adapter/, merged/, samples.parquet, evaluation.json and, where there is one, harness.json of each
run, and all their manifests.
"""

import argparse
import os
from pathlib import Path

from corax import cli
from corax.artifact import Artifact
from corax.errors import CoraxError
from corax.report import content, page

TEMPLATE = Path(os.path.relpath(Path(__file__).resolve().parent.parent / "report" / "report.html.j2"))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.parser(__doc__)
    parser.add_argument("--runs", required=True, type=Path, nargs="+", help="folders of the runs")
    parser.add_argument("--output", required=True, type=Path, help="the page to write, .html")
    parser.add_argument("--template", type=Path, default=TEMPLATE, help="Jinja template (default: %(default)s)")
    return parser


def main(args: argparse.Namespace) -> None:
    """Write the page."""
    if args.output.suffix != ".html":
        raise CoraxError(f"--output: {args.output}, must end in .html")
    names = [run.name for run in args.runs]
    if len(set(names)) < len(names):
        raise CoraxError(f"--runs: {', '.join(names)}: each run needs a name of its own")
    inputs = [path for run in args.runs for path in content.artifacts(run)]
    template = [args.template, args.template.with_name("report.css")]
    runs = [content.load(run) for run in args.runs]
    with Artifact(args.output, stage="report", inputs=[*inputs, *template], file=True) as artifact:
        artifact.path.write_text(page.render(runs, args.template), encoding="utf-8")
        artifact.note(runs=names)
    cli.log.info("report: open %s", args.output)


if __name__ == "__main__":
    cli.run(main, build_parser())
