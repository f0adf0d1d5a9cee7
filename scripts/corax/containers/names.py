"""The names of the container images.

An image's name carries a digest of everything in this repository that decides its content, so that a changed recipe
or lock is another image, and the rules that name it run again.
"""

import hashlib
from collections.abc import Collection
from pathlib import Path

LOCKS = {
    "data": ("data.txt",),
    "train": ("train.txt", "cuda.txt"),
    "harness": ("train.txt", "harness.txt", "cuda.txt"),
    "gguf": ("train.txt", "gguf.txt", "llama-cpp.txt", "llama-cpp-build.txt", "cuda.txt"),
}
"""The images, and the lists in envs/ of the packages that each may install."""
OPTIONAL = ("harness", "gguf")
"""The images that only some configurations use."""
SHARED = ("containers/base.sh", "containers/install.sh", "scripts/corax/containers/digest.py")
"""What the recipes of all images share."""
OWN = {"gguf": ("scripts/corax/containers/converter.py",)}
"""What decides one image besides its recipe and lists."""
DIGITS = 12
"""Of the recipe's sha256, as many hexadecimal digits are in the file name."""


def wanted(used: Collection[str] = ()) -> list[str]:
    """The images that jobs need; of the optional ones those that are `used`."""
    return [name for name in LOCKS if name not in OPTIONAL or name in used]


def command(used: Collection[str] = ()) -> str:
    """What builds the images that are missing."""
    return " ".join(["make images", *(f"{name.upper()}=1" for name in OPTIONAL if name in used)])


def parts(repository: Path, name: str) -> list[Path]:
    """The files that decide the image `name`."""
    locks = (f"envs/{lock}" for lock in LOCKS[name])
    return [repository / part for part in (f"containers/{name}.def", *SHARED, *OWN.get(name, ()), *locks)]


def recipe_digest(repository: Path, name: str) -> str:
    """The sha256, in hexadecimal, over the sha256 of each part, in the order of `parts`."""
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in parts(repository, name)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def image(repository: Path, name: str) -> str:
    """The image's file, relative to the repository."""
    return f"containers/{name}-{recipe_digest(repository, name)[:DIGITS]}.sif"
