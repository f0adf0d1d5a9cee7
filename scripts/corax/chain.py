"""The chain of manifests: what an artifact was made from, back to the first download."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from corax.artifact import Manifest, manifest_path, read_manifest
from corax.errors import CoraxError


@dataclass(frozen=True)
class Link:
    """One artifact of a chain: its manifest, or in one line why there is none."""

    path: Path
    manifest: Manifest | None
    problem: str = ""


def upstream_first(manifests: Iterable[Path]) -> list[Link]:
    """A link for each of `manifests` and all they were made from, inputs before what is made of them.

    A plain file that is an input has a link only if it is missing. Paths in manifests are relative to the
    working directory.
    """
    links: dict[Path, Link] = {}

    def visit(path: Path) -> None:
        key = path.resolve()
        if key in links:
            return
        try:
            manifest = read_manifest(path)
        except CoraxError as error:
            links[key] = Link(path, None, str(error))
            return
        links[key] = Link(path, manifest)
        for source in (Path(item["path"]) for item in manifest.content["inputs"]):
            if not source.exists():
                links[source.resolve()] = Link(source, None, f"{source}: missing, though {path} was made from it")
            elif source.is_dir() or manifest_path(source).is_file():
                visit(manifest_path(source))
        links[key] = links.pop(key)  # to the end, behind its inputs

    for path in manifests:
        visit(path)
    return list(links.values())
