"""Build, check and enter the container images: `make images`, `make check-images`, `make shell STAGE=train`.

    python scripts/images.py build                  data and train, on the base of a container registry
    python scripts/images.py build --harness        that of lm-evaluation-harness too
    python scripts/images.py build --gguf           that of GGUF export too
    python scripts/images.py build --base debian    on a Debian made here, where no registry is reached
    python scripts/images.py build --torch cpu      without CUDA: smaller, for machines without GPUs
    python scripts/images.py check                  recompute the content digests of the images
    python scripts/images.py shell train            a shell in the container of a stage, as its jobs see it
    python scripts/images.py converter FOLDER       what GGUF export needs where there are no images

Needs Apptainer, and no root. Packages come from envs/ with their hashes, through pip with this machine's settings;
the build itself has no network. An image's name carries the digest of its recipe and locks.
"""

import argparse
import json
from pathlib import Path

from corax import cli
from corax.containers import build, converter, enter, inspection, names, packages
from corax.errors import CoraxError

REPOSITORY = Path(__file__).resolve().parent.parent


def build_parser() -> argparse.ArgumentParser:
    """One sub-command for each thing to do."""
    parser = cli.parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    each = commands.add_parser("build", help="build the images that are missing", allow_abbrev=False)
    each.add_argument(
        "--base",
        choices=build.BASES,
        default="registry",
        help="an image of a container registry, pinned in containers/*.def, or a Debian made here (default: registry)",
    )
    each.add_argument("--torch", choices=packages.TORCH, default="cuda", help="which build of torch (default: cuda)")
    each.add_argument("--harness", action="store_true", help="also the image of lm-evaluation-harness")
    each.add_argument("--gguf", action="store_true", help="also the image of GGUF export")
    commands.add_parser("check", help="recompute their content digests", allow_abbrev=False)
    each = commands.add_parser("shell", help="a shell in a stage's container", allow_abbrev=False)
    each.add_argument("stage", help="a stage with a rule, such as train")
    each.add_argument("--configfile", type=Path, default=Path("config.yaml"), help="whose paths are bound")
    each.add_argument("--profile", type=Path, default=REPOSITORY / "profiles/slurm", help="whose apptainer-args hold")
    each = commands.add_parser("converter", help="fetch llama.cpp's converter to GGUF", allow_abbrev=False)
    each.add_argument("folder", type=Path, help="a folder on Python's path, where it is unpacked")
    return parser


def main(args: argparse.Namespace) -> None:
    """Do what the sub-command says; raises CoraxError."""
    images = {name: REPOSITORY / names.image(REPOSITORY, name) for name in names.LOCKS}
    if args.command == "build":
        used = [name for name in names.OPTIONAL if vars(args)[name]]
        missing = {name: images[name] for name in names.wanted(used) if not images[name].is_file()}
        _build(missing, args.base, args.torch)
    elif args.command == "check":
        built = [name for name in names.OPTIONAL if images[name].is_file()]
        _check({name: images[name] for name in names.wanted(built)})
    elif args.command == "converter":
        converter.unpack(REPOSITORY / "envs", args.folder)
    else:
        enter.shell(REPOSITORY, args.stage, args.configfile, args.profile)


def _build(missing: dict[str, Path], kind: str, torch: str) -> None:
    if not missing:
        cli.log.info("all images are there")
        return
    inspection.require_client()
    with build.workspace(REPOSITORY) as space:
        base = build.debian(REPOSITORY, space / "base") if kind == "debian" else None
        for name in missing:
            build.build(REPOSITORY, name, base, torch, space)


def _check(images: dict[str, Path]) -> None:
    for image in images.values():
        if not image.is_file():
            raise CoraxError(f"{image}: missing; build it with: make images")
        print(json.dumps(inspection.check(image)))


if __name__ == "__main__":
    cli.run(main, build_parser())
