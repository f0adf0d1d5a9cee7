"""Which files of a raw folder are read, in which format, and to which part each belongs."""

import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from corax.download.files import DOCUMENTS
from corax.errors import CoraxError
from corax.settings.detokenize import Format

PARTS = ("train", "validation", "test")
SUFFIXES: dict[Format, tuple[str, ...]] = {
    "hdf5": (".h5", ".hdf5"),
    "jsonl": (".jsonl",),
    "parquet": (".parquet",),
    "csv": (".csv",),
    "arrow": (".arrow", ".feather"),
    "json": (".json",),
    "text": (".txt",),
}
WEAK: tuple[Format, ...] = ("text", "json")
"""Formats of files that are data only where no other lies: beside it they are notes, vocabularies and the like."""
DESCRIPTIONS = ("manifest.json", "dataset_info.json", "dataset_infos.json", *DOCUMENTS)
"""Files about data: our own manifest, and what is found beside data on hubs."""


class Files(NamedTuple):
    """Files of one format in order of their names, each with its part; None: its rows are divided by a hash."""

    format: Format
    parts: dict[Path, str | None]


def find_files(folder: Path, format: Format | None) -> Files:
    """The data files below `folder`: those of `format`, or of the one format that is there.

    Raises CoraxError if there is none, if there are several formats, or if names of parts are mixed with other names.
    """
    by_format = {each: _with_suffix(folder, suffixes) for each, suffixes in SUFFIXES.items() if format in (None, each)}
    found: dict[Format, list[Path]] = {each: files for each, files in by_format.items() if files}
    for weak in WEAK:
        if len(found) > 1:
            found.pop(weak, None)
    if not found:
        allowed = ", ".join(f"*{suffix}" for each in by_format for suffix in SUFFIXES[each])
        raise CoraxError(f"{folder}: no {format or 'data'} file ({allowed})")
    if len(found) > 1:
        names = " and ".join(str(files[0].relative_to(folder)) for files in found.values())
        raise CoraxError(f"{folder}: found {names}; allowed: files of one format, or detokenize.format names it")
    ((chosen, files),) = found.items()
    return Files(chosen, _parts(folder, files))


def _with_suffix(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix in suffixes and path.is_file())
    return sorted(path for path in found if not any(fnmatchcase(path.name, pattern) for pattern in DESCRIPTIONS))


def _parts(folder: Path, files: list[Path]) -> dict[Path, str | None]:
    """Parts are given by the names train, validation and test, all three and no others.

    They count in the folder that holds all files, such as `data/` of a hub's repository.
    """
    top = Path(os.path.commonpath([path.parent for path in files]))
    given = [path for path in files if path.stem in PARTS and path.parent == top]
    if not given:
        return dict.fromkeys(files)
    if sorted(path.stem for path in files) != sorted(PARTS) or given != files:
        names = ", ".join(str(path.relative_to(folder)) for path in files[:5])
        suffix = files[0].suffix
        raise CoraxError(
            f"{folder}: found {names}; allowed: train{suffix}, validation{suffix} and test{suffix}, "
            "or only other names (then prompts are divided by a hash)"
        )
    return {path: path.stem for path in files}
