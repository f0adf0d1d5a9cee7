"""Say what is missing before anything is submitted to a cluster: one line each, exit code 2.

    python scripts/check.py --configfile config.yaml --profile profiles/slurm
    python scripts/check.py --configfile presets/raven.yaml mine.yaml

Run it where Snakemake will run, in the folder that will hold the results. It looks at the configuration, Apptainer and
images, binds, disk space and quota, TMPDIR, partition, GPUs, constraint, time limit against the plan (if there is one
already), and whether the hub gives out the models. It submits nothing and changes nothing.
"""

import argparse
import sys
from pathlib import Path

from corax import cli, config
from corax.preflight import hub, images, profile, slurm, storage

REPOSITORY = Path(__file__).resolve().parent.parent


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--configfile",
        nargs="+",
        type=Path,
        default=[Path("config.yaml")],
        help="configuration; of several files each changes what those before say",
    )
    parser.add_argument("--profile", type=Path, default=REPOSITORY / "profiles" / "slurm", help="profile folder")
    return parser


def main(args: argparse.Namespace) -> None:
    """Print the problems; exit code 2 if there are any."""
    settings, chosen, folder = config.load(*args.configfile), profile.read(args.profile), Path.cwd()
    found = [*profile.problems(chosen), *storage.problems(settings, folder)]
    if chosen.uses_containers():
        found += [*images.problems(REPOSITORY, settings.optional_images), *storage.bind_problems()]
    found += [*slurm.problems(settings, chosen, folder), *hub.problems(settings, folder)]
    for line in found:
        print(f"error: {line}", file=sys.stderr)
    if found:
        sys.exit(cli.USER_ERROR)
    cli.log.info("nothing is missing")


if __name__ == "__main__":
    cli.run(main, build_parser())
