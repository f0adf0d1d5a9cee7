"""llama.cpp's converter to GGUF, run as a program of its own: where it is, what it is, what it says and leaves out."""

import errno
import hashlib
import json
import logging
import mmap
import os
import re
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import Distribution
from importlib.util import find_spec
from pathlib import Path

from corax.artifact import Manifest, sha256
from corax.containers.converter import PACKAGE
from corax.errors import CoraxError
from corax.progress import Progress
from corax.settings.tuning import BESIDE

log = logging.getLogger("corax")

PROGRAM = "convert_hf_to_gguf.py"
WRITTEN = re.compile(r"Writing: +(\d+)%")
"""The converter's bar."""
DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded|\d+ requested and \d+ written")
"""What the system says of a full disk, and numpy."""
LEVEL = re.compile(r"^[A-Z]+:[\w.-]+:")


@dataclass(frozen=True)
class Converter:
    """The converter in `folder`, as `corax.containers.converter` unpacks it."""

    folder: Path

    @classmethod
    def find(cls) -> "Converter":
        """The one on Python's path; raises CoraxError if there is none."""
        spec = find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise CoraxError("llama.cpp's converter: not installed here; see docs/merge.md, GGUF")
        return cls(Path(next(iter(spec.submodule_search_locations))))

    @property
    def version(self) -> str:
        """Name and version of the package that it comes from."""
        package = Distribution.at(self.folder)
        return f"{package.metadata['Name']} {package.version}"

    @property
    def digest(self) -> str:
        """The sha256 over the sha256 of its source files, sorted by path."""
        paths = sorted(self.folder.rglob("*.py"))
        lines = [f"{sha256(path)}  {path.relative_to(self.folder)}\n" for path in paths]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def convert(self, model: Path, name: str, outtype: str, target: Path) -> None:
        """Write the model folder `model` to the file `target`; `name` and `outtype` stand in its metadata.

        Raises CoraxError for a model that the converter refuses, OSError if the disk is full.
        """
        # With absolute paths nothing can be taken for an option.
        arguments = [str(model.resolve()), "--outfile", str(target.resolve()), "--outtype", outtype]
        command = [sys.executable, str(self.folder / PROGRAM), *arguments, f"--model-name={name}"]
        with tempfile.TemporaryDirectory() as empty:
            # Nothing that a hub's cache may hold counts, in particular no code.
            environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": empty}
            code, said = _run(command, environment)
        if code < 0:
            raise subprocess.CalledProcessError(code, command)
        if code and any(map(DISK_FULL.search, said)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        if code:
            reason = LEVEL.sub("", said[-1]) if said else f"exit code {code}"
            raise CoraxError(f"{model}: llama.cpp's converter refuses it: {reason}")


def _run(command: list[str], environment: dict[str, str]) -> tuple[int, list[str]]:
    """Run the converter, with its output in the log; its exit code and the lines that it wrote."""
    said: list[str] = []
    in_traceback = False
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    with process, Progress("export", total=100, unit="%") as progress:
        for line in map(str.strip, process.stdout or ()):  # each state of the bar is a line
            in_traceback = in_traceback or "Traceback (most recent call last)" in line
            written = WRITTEN.match(line)
            if written:
                if int(written[1]) > progress.done:
                    progress.advance(int(written[1]) - progress.done)
            elif line:
                said.append(line)
                if not in_traceback:
                    log.info("converter: %s", line)
    return process.returncode, said


def check_model(model: Manifest) -> None:
    """Raise CoraxError for a model folder of which the converter would take a part only, or whose code it would run."""
    method = model.facts.get("method")
    if method in BESIDE:
        raise CoraxError(f"{model.artifact}: what {method} trained lies beside the weights: GGUF has no place for it")
    code = [file for file in model.files() if file.suffix == ".py"]
    if code:
        raise CoraxError(f"{code[0]}: a model with code of its own, which is never run")


def check_tokens(model: Path, file: Path) -> None:
    """Raise CoraxError if the GGUF `file` has a placeholder for a token that `model`'s tokenizer.json added.

    Where there is a tokenizer.model the converter reads that, which knows nothing of tokens added later.
    """
    names = _tokens(file)
    for token in json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]:
        number = token["id"]
        if number < len(names) and names[number] == f"[PAD{number}]":
            raise CoraxError(
                f"{model / 'tokenizer.json'}: the token {token['content']!r} ({number}) is not in tokenizer.model, "
                "which llama.cpp's converter reads"
            )


def _tokens(file: Path) -> list[str]:
    """The tokens in a GGUF file's metadata (format: docs/gguf.md of ggml), by id.

    The gguf package's reader takes 5 seconds for 100,000 tokens and merges.
    """
    key, array, string = b"tokenizer.ggml.tokens", 9, 8
    entry = struct.pack("<Q", len(key)) + key + struct.pack("<II", array, string)
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        content.seek(content.find(entry) + len(entry))

        def number() -> int:
            return int.from_bytes(content.read(8), "little")

        return [content.read(number()).decode() for _ in range(number())]
