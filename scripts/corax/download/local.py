"""A folder or file on this machine: copied, because an artifact must not change under a run."""

from pathlib import Path

from corax.artifact import is_artifact, manifest_path
from corax.download import files, model_folder
from corax.errors import CoraxError
from corax.settings.download import Kind, LocalSource


def get(source: LocalSource, kind: Kind, work: Path, folder: Path) -> None:
    """Copy the usable files of the source into `folder`; raises CoraxError before copying any."""
    del work  # a copy needs no intermediate state
    take(Path(source.path), kind, source.origin, folder)


def artifacts(source: LocalSource) -> list[Path]:
    """The source as an input of the new artifact, where it is an artifact itself (a merged model, say).

    A `manifest.json` alone does not make it one: others give their data files of that name.
    """
    path = Path(source.path)
    return [path] if path.is_dir() and manifest_path(path).is_file() and is_artifact(path) else []


def inputs(path: Path, kind: Kind) -> list[str]:
    """The files that `take` copies; `path` alone where it would refuse."""
    try:
        return (
            [str(path / name) for name in files.select(_names(path), kind, str(path))] if path.is_dir() else [str(path)]
        )
    except CoraxError:
        return [str(path)]


def take(path: Path, kind: Kind, origin: str, folder: Path) -> None:
    """Copy the usable files of the folder (or the file) `path` into `folder`; errors name `origin`."""
    if not path.exists():
        raise CoraxError(f"{origin}: does not exist")
    if path.is_dir():
        names, root = _names(path), path
        if kind == "data" and (linked := _linked(path)):
            raise CoraxError(f"{origin}: {linked} is a link to a folder, which is not followed; copy the folder here")
    elif kind == "model":
        raise CoraxError(f"{origin}: is a file, a model is a folder with config.json, weights and tokenizer")
    else:
        names, root = [path.name], path.parent
    if kind == "model":
        model_folder.require(names, origin)
    chosen = files.select(names, kind, origin)
    for name in chosen:
        if not (root / name).is_file():
            raise CoraxError(f"{origin}: {name} is no regular file (a dangling link, pipe or device?)")
    for name in chosen:
        try:
            files.copy(root / name, folder / name)
        except PermissionError:
            raise CoraxError(f"{origin}: {name} may not be read by this user") from None


def _linked(folder: Path) -> str | None:
    """The relative path of a folder that is only linked here, None if there is none; hidden ones do not count."""
    links = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink() and path.is_dir())
    return next((name for name in links if not files.is_hidden(name)), None)


def _names(folder: Path) -> list[str]:
    """Relative paths of all that is not a folder. Links to files count (a hub's cache is made of them)."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()]
