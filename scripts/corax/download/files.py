"""Which files are taken from a source, and how they come into the artifact."""

import fcntl
import logging
import os
import shutil
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from corax.errors import CoraxError
from corax.settings.download import Kind

log = logging.getLogger("corax")

DATA = ("*.h5", "*.hdf5", "*.parquet", "*.jsonl", "*.csv", "*.arrow", "*.feather")
DOCUMENTS = ("README*", "LICENSE*", "NOTICE*")
PATTERNS: dict[Kind, tuple[str, ...]] = {
    "model": ("*.json", "model*.safetensors", "tokenizer.model", "*.txt", "*.jinja", *DOCUMENTS),
    "data": (*DATA, "*.json", "*.txt", *DOCUMENTS),
}
"""File names that are taken. Pickled weights (.bin, .pt) and code (.py) never are: loading them runs them."""
FICLONE = 0x40049409
"""Linux's ioctl that makes a file share another's blocks until one of the two is written to."""


def select(names: Iterable[str], kind: Kind, origin: str) -> list[str]:
    """Those of a source's relative paths that are taken, sorted.

    A model is a flat folder: what lies deeper (other formats of the same weights) is left out. So is what is hidden:
    Jupyter's `.ipynb_checkpoints` are older copies of the data, macOS's `._x.csv` no data at all. Raises CoraxError
    for a path that leads outside, and for data without a data file.
    """
    names = sorted(name for name in names if name != "manifest.json")  # the artifact's own comes there
    for name in names:
        check_relative(name, origin)
    shown = [name for name in names if not is_hidden(name)]
    taken = [name for name in shown if _matches(name, PATTERNS[kind]) and (kind == "data" or "/" not in name)]
    if kind == "data":
        data = DATA if "config.json" in names else (*DATA, "*.json", "*.txt")  # a model's own are no data
        if not any(_matches(name, data) and not _matches(name, DOCUMENTS) for name in taken):
            found = ", ".join(names[:5]) or "nothing"
            raise CoraxError(f"{origin}: no data file, found {found}, allowed: {', '.join(data)}")
        left = sorted(set(shown) - set(taken))
        if left:  # `b.csv.gz` or `B.CSV` beside `a.csv`
            log.info("%s: %d files of other kinds are not taken: %s", origin, len(left), ", ".join(left[:5]))
    return taken


def check_relative(name: str, origin: str) -> None:
    """Raise CoraxError if the path `name` that `origin` gives is absolute or leads outside."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not path.parts:
        raise CoraxError(f"{origin}: refused, it names the path {name!r}, which leads outside its folder")


def is_hidden(name: str) -> bool:
    """Whether a file, or a folder that it lies in, has a name that begins with a dot."""
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(PurePosixPath(name).name, pattern) for pattern in patterns)


def first_line(error: Exception) -> str:
    """What a library's error says, without the pages that may follow."""
    return str(error).strip().partition("\n")[0]


def link(source: Path, target: Path) -> None:
    """Make `target` a second name of `source`, a file of our own, or a copy where that cannot be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        copy(source, target)


def copy(source: Path, target: Path) -> None:
    """Copy a file's content, sharing its blocks where the file system can (a reflink)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as old, target.open("wb") as new:
        try:
            fcntl.ioctl(new.fileno(), FICLONE, old.fileno())
        except OSError:
            shutil.copyfileobj(old, new, 1 << 20)
