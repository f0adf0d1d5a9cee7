"""Apptainer and the images."""

import shutil
import subprocess
from collections.abc import Collection, Iterator
from pathlib import Path

from corax.containers import names

SECONDS = 3


def problems(repository: Path, used: Collection[str]) -> Iterator[str]:
    """Apptainer that does not run, and images that are not there; of the optional ones those that are `used`."""
    if shutil.which("apptainer") is None:
        yield "apptainer: not found; load its module, or ask for it"
    else:
        try:
            result = subprocess.run(["apptainer", "--version"], capture_output=True, text=True, timeout=SECONDS)
            if result.returncode != 0:
                yield f"apptainer: does not run: {' '.join(result.stderr.split())}"
        except subprocess.TimeoutExpired:
            yield f"apptainer: no answer within {SECONDS} seconds"
    for name in names.wanted(used):
        image = repository / names.image(repository, name)
        if not image.is_file():
            yield f"{image}: missing; run `{names.command(used)}`"
