"""Build an image without root and without a network, and show it only when it is whole.

Packages, base and root file system arise in a temporary folder, the image under a temporary name. It is tested, its
content digest is computed again from the file itself, a description is written beside it, and then it is renamed.
"""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from corax.artifact import sha256
from corax.containers import digest, inspection, names, packages
from corax.errors import CoraxError
from corax.lock import lock

log = logging.getLogger("corax")

BASES = ("registry", "debian")
SQUASHFS = "-comp zstd -Xcompression-level 1"
"""Several times as fast as the default, gzip at level 9, at about the same size."""
LOGGED_LINES = 20


@dataclass(frozen=True)
class Base:
    """What images are built on: `bootstrap` and `From` of a recipe, and the digest of its content."""

    bootstrap: str
    source: str
    digest: str


@contextmanager
def workspace(repository: Path) -> Iterator[Path]:
    """A temporary folder (below TMPDIR) for one build at a time; what killed ones left behind is removed first.

    Its name is new each time: programs that outlive a killed build go on writing where nobody looks.
    """
    images = repository.resolve() / "containers"
    prefix = f"corax-images-{hashlib.sha256(bytes(images)).hexdigest()[:8]}-"
    with lock(images, ".lock", "images are being built here already; wait for that to end", patience=0):
        for abandoned in images.glob(".*.tmp"):
            abandoned.unlink()
        for abandoned in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def debian(repository: Path, folder: Path) -> Base:
    """A Debian made on this machine in `folder`; raises CoraxError."""
    log.info("base: Debian, from its packages")
    _run(["bash", str(repository / "containers/base.sh"), str(folder)])
    return Base("localimage", str(folder), digest.digest(folder))


def build(repository: Path, name: str, base: Base | None, torch: str, space: Path) -> None:
    """Build the image `name` of the repository, in `space`, with the `torch` build "cuda" or "cpu".

    `base` is None for the registry's, which the recipe names.

    Raises CoraxError; then, or if it is killed, there is nothing at the image's final path.
    """
    final = repository / names.image(repository, name)
    temporary = final.with_name(f".{final.stem}.{space.name}.tmp")
    fetched = space / name
    log.info("%s: packages", final.name)
    packages.fetch([repository / "envs" / lock for lock in names.LOCKS[name]], torch, fetched)
    arguments = {"image": final.name, "recipe": names.recipe_digest(repository, name)}
    if packages.CUDA_LOCK in names.LOCKS[name]:
        arguments["torch"] = torch
    if base:
        arguments |= {"bootstrap": base.bootstrap, "base": base.source, "base_digest": base.digest}
    command = ["apptainer", "build", "--force", "--fakeroot", "--mksquashfs-args", SQUASHFS]
    command += ["--bind", f"{fetched}:/mnt"]
    command += [word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")]
    log.info("%s: build", final.name)
    _run([*command, str(temporary), f"containers/{name}.def"], cwd=repository, APPTAINER_TMPDIR=str(space))
    shutil.rmtree(fetched)
    log.info("%s: check", final.name)
    description = {**inspection.check(temporary), "sha256": sha256(temporary), "size": temporary.stat().st_size}
    if description["image"] != final.name:
        raise CoraxError(f"{final}: the recipe or a lock changed while the image was built; build it again")
    final.with_suffix(".json").write_text(json.dumps(description, indent=1) + "\n")
    os.replace(temporary, final)


def _run(command: list[str], cwd: Path | None = None, **environment: str) -> None:
    """Run a program; if it fails, log the end of what it said and raise CoraxError."""
    try:
        result = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except FileNotFoundError:
        raise CoraxError(f"{command[0]}: not installed, or not on PATH") from None
    if result.returncode != 0:
        for line in result.stdout.splitlines()[-LOGGED_LINES:]:
            log.info("%s: %s", Path(command[0]).name, line)
        raise CoraxError(f"{' '.join(command[:2])} failed with exit code {result.returncode}, for the reason above")
