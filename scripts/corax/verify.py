"""Check artifacts against their manifests: every file, and every link from an artifact to its inputs."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corax.artifact import MARK, Manifest, changed_file, manifest_path, sha256
from corax.chain import Link, upstream_first
from corax.errors import CoraxError

THREADS = 4
"""Files read at the same time."""
UNLISTED = (MARK, ".snakemake_timestamp")
"""Empty files that no manifest lists: ours, and Snakemake's own."""


@dataclass(frozen=True)
class Chain:
    """The artifacts to check, upstream first, and the files below the given folders that none of them lists."""

    links: list[Link]
    strays: list[Path]

    @property
    def manifests(self) -> list[Manifest]:
        """The manifests that could be read."""
        return [link.manifest for link in self.links if link.manifest]

    @property
    def files(self) -> dict[Path, int]:
        """Each listed file with its size (bytes) as listed."""
        return {file: entry["size"] for manifest in self.manifests for file, entry in manifest.files().items()}


def find(paths: Iterable[Path]) -> Chain:
    """The artifacts at or below `paths`, and all they were made from; raises CoraxError if there are none."""
    manifests: list[Path] = []
    folders: list[Path] = []
    for path in paths:
        if not path.exists():
            raise CoraxError(f"{path}: no such file or folder")
        own = manifest_path(path)
        found = [own] if own.is_file() else [file for file in _files(path) if file.name.endswith("manifest.json")]
        if not found:
            raise CoraxError(f"{path}: no artifact here (no manifest.json)")
        manifests += found
        folders += [path] if path.is_dir() else []
    links = upstream_first(manifests)
    whole = [link.path.parent for link in links if link.path.name == "manifest.json"]
    listed = {file.resolve() for link in links if link.manifest for file in link.manifest.files()}
    listed |= {link.path.resolve() for link in links}
    present = {file.resolve(): file for folder in [*folders, *whole] for file in _files(folder)}
    return Chain(links, sorted(present[key] for key in present.keys() - listed))


def problems(chain: Chain, advance: Callable[[], Any] = lambda: None) -> Iterator[str]:
    """One line for each thing that is wrong, the origin before what follows from it.

    Reads every listed file and calls `advance` after each.
    """
    strays = list(chain.strays)
    digests = {manifest.path.resolve(): manifest.digest for manifest in chain.manifests}
    with ThreadPoolExecutor(THREADS) as pool:
        checks = [
            [pool.submit(changed_file, file, entry, manifest.path) for file, entry in manifest.files().items()]
            for manifest in chain.manifests
        ]
        remaining = iter(checks)
        try:
            for link in chain.links:
                if link.manifest is None:
                    yield link.problem
                    continue
                for check in next(remaining):
                    problem = check.result()
                    advance()
                    if problem:
                        yield problem
                if link.path.name == "manifest.json":
                    for file in [file for file in strays if file.is_relative_to(link.path.parent)]:
                        strays.remove(file)
                        yield f"{file}: not listed in {link.path}"
                yield from _check_inputs(link.manifest, digests)
            yield from (f"{file}: belongs to no artifact (no manifest lists it)" for file in strays)
        finally:
            pool.shutdown(cancel_futures=True)


def _check_inputs(manifest: Manifest, digests: dict[Path, str]) -> Iterator[str]:
    """Inputs that are no longer those the artifact was made from; missing ones have a link of their own."""
    for item in manifest.content["inputs"]:
        path = Path(item["path"])
        found = digests.get(manifest_path(path).resolve()) or (sha256(path) if path.is_file() else None)
        if found and found != item["digest"]:
            yield f"{path}: digest {found} found, {manifest.path} was made from {item['digest']}"


def _files(folder: Path) -> list[Path]:
    """The files below `folder` without the unlisted ones and those being written (hidden .tmp and .old folders)."""
    found: list[Path] = []
    for place, folders, names in os.walk(folder):  # which passes over a folder that a running job has just removed
        folders[:] = [name for name in folders if not _is_temporary(name)]
        found += [Path(place, name) for name in names if name not in UNLISTED and not _is_temporary(name)]
    return sorted(path for path in found if path.is_file())


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith((".tmp", ".old"))
