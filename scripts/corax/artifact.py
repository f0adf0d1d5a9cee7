"""Artifacts: files that exist completely, with a manifest, or not at all.

An artifact is a folder with a `manifest.json` inside, or one file with `<stem>.manifest.json` beside it.
It is written under a temporary name, its files reach the disk, its manifest is written last, and it is
renamed into place. A manifest names the sha256 and size of every file, the artifacts it was made from,
the settings of its stage and the code; `run` alone holds what differs from one execution to the next.
"""

import hashlib
import json
import os
import platform
import resource
import secrets
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from corax import __version__, sources
from corax.errors import CoraxError, is_disk_full

FILE_SUFFIXES = (".html", ".json", ".parquet")
"""An artifact whose name ends so is one file; any other is a folder (model names contain dots)."""
MARK = ".corax"
"""An empty file in every folder that is an artifact: what has it may be replaced, also where Snakemake has deleted the
manifest to make the artifact again."""
SCRIPT = Path(sys.argv[0]).resolve()
"""The running program; found before anything changes the working directory."""
IMAGE = Path("/opt/corax/image.json")
"""Inside a container: its image's file name, base and content digest, written when it was built."""
HASHED_TOGETHER = 4
"""Files of an artifact whose sha256 is computed at the same time: one core does about 2 GB/s."""
FILE_MODE = 0o644
"""Colleagues may read: safetensors would write files for their owner alone."""
RECORDED_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "tokenizers",
    "fastokens",
    "pyarrow",
    "numpy",
    "h5py",
    "matplotlib",
    "jinja2",
)


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest_path(artifact: Path) -> Path:
    """Where the manifest of the artifact (a folder or a file) lies."""
    if artifact.suffix in FILE_SUFFIXES:
        return artifact.with_suffix(".manifest.json")
    return artifact / "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """A manifest that was read: its path, the artifact it describes, and its content."""

    path: Path
    content: dict[str, Any]

    @property
    def digest(self) -> str:
        """The artifact's identity: a hash over the names and hashes of its files."""
        return str(self.content["digest"])

    @property
    def facts(self) -> dict[str, Any]:
        """What the stage found out and later stages or the report use."""
        return dict(self.content["facts"])

    @property
    def artifact(self) -> Path:
        """The folder or file that the manifest describes."""
        if self.path.name == "manifest.json":
            return self.path.parent
        return self.path.with_name(next(iter(self.content["files"])))

    def files(self) -> dict[Path, dict[str, Any]]:
        """Each file of the artifact with its `sha256` and `size` (bytes)."""
        return {self.path.parent / name: entry for name, entry in self.content["files"].items()}


def read_manifest(path: Path) -> Manifest:
    """The manifest at `path`; raises CoraxError if it is missing, damaged or edited."""
    try:
        text = path.read_bytes().decode()
        content = json.loads(text)
    except FileNotFoundError:
        raise CoraxError(f"{path}: missing, so the artifact is not there or not complete") from None
    except OSError as error:
        raise CoraxError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise CoraxError(f"{path}: damaged, it is no JSON") from None
    if not isinstance(content, dict) or text != _seal(content) or content["digest"] != _digest(content["files"]):
        raise CoraxError(f"{path}: differs from what was written (its own seal does not match)")
    return Manifest(path, content)


def open_artifact(path: Path) -> Manifest:
    """The manifest of the artifact at `path`, after a check that its files are there in full size."""
    manifest = read_manifest(manifest_path(path))
    problem = missing_file(manifest)
    if problem:
        raise CoraxError(problem)
    return manifest


def missing_file(manifest: Manifest) -> str | None:
    """One line about the first file that is missing or has another size; None if all are there."""
    problems = (wrong_size(file, entry, manifest.path) for file, entry in manifest.files().items())
    return next((problem for problem in problems if problem), None)


def wrong_size(file: Path, entry: Mapping[str, Any], manifest: Path) -> str | None:
    """One line if `file` is missing or has another size than its `entry` in `manifest`; None if it is right."""
    if not file.is_file():
        return f"{file}: missing, though {manifest} lists it"
    size = file.stat().st_size
    return f"{file}: {size} bytes found, {entry['size']} in {manifest}" if size != entry["size"] else None


def changed_file(file: Path, entry: Mapping[str, Any], manifest: Path) -> str | None:
    """As `wrong_size`, and one line too if the file's sha256 is another."""
    problem = wrong_size(file, entry, manifest)
    if problem or (found := sha256(file)) == entry["sha256"]:
        return problem
    return f"{file}: sha256 {found} found, {entry['sha256']} in {manifest}"


def damage(artifact: Path) -> str | None:
    """One line about what is wrong with an artifact, the sha256 of its files included; None if nothing is."""
    try:
        manifest = read_manifest(manifest_path(artifact))
    except CoraxError as error:
        return str(error)
    problems = (changed_file(file, entry, manifest.path) for file, entry in manifest.files().items())
    return next((problem for problem in problems if problem), None)


class Artifact:
    """Context manager that writes one artifact; see the module's docstring.

    `path` names the final folder, or the final file if `file` is true; inside the block write to
    `self.path`. `inputs` are artifacts (or plain files) that it is made from, `settings` the resolved
    settings by section. `note(key=value)` adds facts, `measured(key=value)` what differs between runs.
    """

    def __init__(
        self,
        path: Path,
        *,
        stage: str,
        inputs: Iterable[Path] = (),
        settings: Mapping[str, Any] | None = None,
        file: bool = False,
    ) -> None:
        self.final = Path(path)
        self.file = file
        self.stage = stage
        self.inputs = [reference(Path(item)) for item in inputs]
        self.settings = {key: _plain(value) for key, value in (settings or {}).items()}
        self.facts: dict[str, Any] = {}
        self.measures: dict[str, Any] = {}
        _check_place(self.final, file)
        self.final.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(self.final)
        self._folder = self.final.with_name(
            f".{self.final.name}.{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"
        )
        self.path = self._folder / self.final.name if file else self._folder

    def __enter__(self) -> Self:
        self._folder.mkdir()
        self._start = time.time()
        return self

    def note(self, **facts: Any) -> None:
        """Record deterministic facts for later stages and the report."""
        self.facts |= {key: _plain(value) for key, value in facts.items()}

    def measured(self, **measures: Any) -> None:
        """Record what differs between executions: seconds, tokens/s, peak memory."""
        self.measures |= {key: _plain(value) for key, value in measures.items()}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                raise error
            self._publish()
        except Exception as failure:
            if is_disk_full(failure) and not isinstance(failure, CoraxError):
                raise CoraxError(f"{self.final}: the disk is full") from failure
            raise
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _publish(self) -> None:
        manifest = self._folder / manifest_path(self.final if self.file else Path()).name
        content = self._content()
        if manifest.name in content["files"]:
            raise CoraxError(f"{self.final}: a file of its own is named {manifest.name}, as only its manifest may be")
        manifest.write_text(_seal(content))
        if not self.file:
            (self._folder / MARK).touch()
        for path in _files(self._folder):
            path.chmod(FILE_MODE)
        for path in [*self._folder.rglob("*"), self._folder]:
            _fsync(path)
        if self.file:
            final_manifest = self.final.with_name(manifest.name)
            final_manifest.unlink(missing_ok=True)
            os.replace(self.path, self.final)
            os.replace(manifest, final_manifest)
        else:
            previous = self._folder.with_suffix(".old")
            if self.final.exists():
                self.final.rename(previous)
            self._folder.rename(self.final)
            shutil.rmtree(previous, ignore_errors=True)
        _fsync(self.final.parent)

    def _content(self) -> dict[str, Any]:
        paths = _files(self._folder)
        with ThreadPoolExecutor(HASHED_TOGETHER) as pool:
            files = {
                str(path.relative_to(self._folder)): {"sha256": digest, "size": path.stat().st_size}
                for path, digest in zip(paths, pool.map(sha256, paths), strict=True)
            }
        if not files or (self.file and list(files) != [self.final.name]):
            raise CoraxError(f"{self.final}: the stage {self.stage} wrote {', '.join(files) or 'no file'}")
        return {
            "stage": self.stage,
            "digest": _digest(files),
            "files": files,
            "inputs": self.inputs,
            "settings": self.settings,
            "facts": self.facts,
            "code": {"version": __version__, "sha256": sources.digest(SCRIPT)},
            "run": {
                "command": shlex.join(["python", *sys.argv]),
                "container": json.loads(IMAGE.read_text()) if IMAGE.is_file() else None,
                "host": socket.gethostname(),
                "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
                "packages": _versions(),
                "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "python": platform.python_version(),
                "cpu_seconds": round(time.process_time(), 3),
                "seconds": round(time.time() - self._start, 3),
                "slurm_job": os.environ.get("SLURM_JOB_ID"),
                "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._start)),
                **self.measures,
            },
        }


def reference(path: Path) -> dict[str, str]:
    """How a manifest names an input: its path and digest (for a plain file, its sha256)."""
    if manifest_path(path).is_file():
        return {"path": str(path), "digest": open_artifact(path).digest}
    if path.is_file():
        return {"path": str(path), "digest": sha256(path)}
    raise CoraxError(f"{path}: missing, or a folder without {manifest_path(path).name}")


def _digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    lines = "".join(f"{entry['sha256']}  {name}\n" for name, entry in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _seal(content: Mapping[str, Any]) -> str:
    """The manifest as text, its last key a hash of all others: a flipped bit anywhere shows."""
    body = {key: value for key, value in content.items() if key != "seal"}
    text = json.dumps(body, indent=1, sort_keys=False)
    return json.dumps({**body, "seal": hashlib.sha256(text.encode()).hexdigest()}, indent=1) + "\n"


def _plain(value: Any) -> Any:
    """Settings, paths and tuples as what JSON can hold."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return json.loads(json.dumps(value, default=str))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARK)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_place(final: Path, file: bool) -> None:
    """Raise CoraxError where the artifact would replace what is none of its kind: a mistyped path deletes nothing."""
    if not final.name:
        raise CoraxError(f"{final}: a name is needed, the artifact replaces what lies there")
    if file and final.suffix not in FILE_SUFFIXES:
        raise CoraxError(f"{final}: must end in {', '.join(FILE_SUFFIXES)}")
    if (file and final.is_dir()) or (not file and final.is_file()):
        kinds = ("a folder", "one file") if file else ("a file", "a folder")
        raise CoraxError(f"{final}: is {kinds[0]}, {kinds[1]} is written here")
    found = [] if file or not final.is_dir() or is_artifact(final) else sorted(final.iterdir())
    if found:
        raise CoraxError(
            f"{final}: holds {found[0].name} and is no artifact, all in it would be deleted; name another folder, or "
            "empty this one first"
        )


def is_artifact(folder: Path) -> bool:
    """Whether the folder is or was an artifact, which its successor may replace."""
    try:
        return (folder / MARK).exists() or bool(read_manifest(manifest_path(folder)))
    except CoraxError:
        return False


def _remove_abandoned(final: Path) -> None:
    """Delete temporary folders that killed processes of this host left behind."""
    for folder in final.parent.glob(f".{final.name}.{socket.gethostname()}-*"):
        pid = folder.name.rsplit("-", 2)[-2]
        # In a container of its own the killed process often had the number that this one has.
        if pid.isdigit() and (int(pid) == os.getpid() or not Path("/proc", pid).exists()):
            shutil.rmtree(folder, ignore_errors=True)


def _versions() -> dict[str, str]:
    loaded = (name for name in RECORDED_PACKAGES if name in sys.modules)
    return {name: metadata.version(name) for name in loaded}
