"""Text to token shards, reading them, and every kind of bad input."""

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stages
import tiny

from corax import lengths, tokens
from corax.artifact import Artifact, open_artifact, read_manifest, sha256
from corax.errors import CoraxError
from corax.pretokenize import encoders, lines
from corax.pretokenize.contract import Contract
from corax.pretokenize.rows import Rows, join
from corax.pretokenize.samples import read_samples
from corax.pretokenize.stage import pretokenize
from corax.settings.pretokenize import PretokenizeSettings
from corax.template import Template
from corax.tokens import TokenShards

PARTS = ("train", "validation", "test")
FLAVOURS: tuple[tiny.Flavour, ...] = get_args(tiny.Flavour)
EXPECTED = (tiny.DATA / "split_data_0.expected.jsonl").read_text().splitlines()
ROWS = [(row["state"], row["code"]) for row in map(json.loads, EXPECTED)]
SETTINGS = PretokenizeSettings()


def tokenizer_artifact(path: Path, flavour: tiny.Flavour) -> Path:
    with Artifact(path, stage="download") as artifact:
        tiny.tokenizer_folder(artifact.path, flavour)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {flavour: tokenizer_artifact(root / flavour, flavour) for flavour in FLAVOURS}


def line(prompt: object, completion: object) -> bytes:
    return json.dumps({"prompt": prompt, "completion": completion}, ensure_ascii=False).encode() + b"\n"


def text_folder(path: Path, **parts: bytes) -> Path:
    """A text artifact with these files; parts that are not given are empty."""
    with Artifact(path, stage="detokenize") as artifact:
        for part in PARTS:
            (artifact.path / f"{part}.jsonl").write_bytes(parts.get(part, b""))
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,560 training rows, more than two row groups; no validation rows; 5 test rows, the last without newline."""
    train = b"".join(line(prompt, completion) for prompt, completion in ROWS) * 80
    test = b"".join(line(prompt, completion) for prompt, completion in ROWS[:5]).rstrip(b"\n")
    return text_folder(tmp_path_factory.mktemp("text") / "text", train=train, test=test)


@pytest.fixture(scope="module")
def made(text: Path, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens") / "000"
    stages.call("pretokenize", "--text", text, "--model", models["llama3"], "--output", folder)
    return folder


def test_rows_are_the_texts_in_order(made: Path, models: dict[str, Path]) -> None:
    template = Template(models["llama3"], SETTINGS.prompt_header, SETTINGS.completion_header)
    for part, count in (("train", 2560), ("validation", 0), ("test", 5)):
        shards = TokenShards([made], part)
        assert shards.rows == [count]
        for row in [*range(0, count, 97), *range(count)[-2:]]:
            prompt, completion = ROWS[row % 32]
            ids, targets = shards.row(0, row)
            assert targets.tolist() == [*range(targets[0], len(ids))]
            assert ids[: targets[0]].tolist() == template.prompt_ids(prompt)
            assert template.decode_completion(ids[targets].tolist()) == completion
            assert ids[-1] == template.end_id


def test_columns_and_facts(made: Path, text: Path, models: dict[str, Path]) -> None:
    file = pq.ParquetFile(made / "train.parquet")
    assert {field.name: str(field.type) for field in file.schema_arrow} == {
        "input_ids": "list<element: uint32>",
        "prompt_length": "int32",
        "length": "int32",
    }
    column = file.metadata.row_group(0).column(0)
    assert column.compression == "ZSTD" and "RLE_DICTIONARY" in column.encodings
    assert [file.metadata.row_group(group).num_rows for group in range(5)] == [512] * 5
    table = file.read()
    total = table["length"].to_numpy()
    assert total.tolist() == [len(ids) for ids in table["input_ids"].to_pylist()]
    manifest = open_artifact(made)
    facts = manifest.facts
    assert facts["rows"] == {"train": 2560, "validation": 0, "test": 5}
    assert facts["tokens"]["train"] == total.sum()
    assert facts["completion_tokens"]["train"] == (total - table["prompt_length"].to_numpy()).sum()
    assert facts["tokenizer_sha256"] == sha256(models["llama3"] / "tokenizer.json")
    assert facts["template"]["end"] == {"id": 1, "token": "<|end_of_text|>"}
    assert [entry["path"] for entry in manifest.content["inputs"]] == [str(text), str(models["llama3"])]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_same_bytes_again_whatever_the_block(
    flavour: str, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = text_folder(tmp_path / "text", train=b"".join(line(*row) for row in ROWS) * 40)
    for name in ("first", "second"):
        pretokenize(text, models[flavour], tmp_path / name, SETTINGS)
        monkeypatch.setattr(lines, "BLOCK_BYTES", 5000)
    assert open_artifact(tmp_path / "first").digest == open_artifact(tmp_path / "second").digest


def test_data_that_spells_special_tokens_stays_data(models: dict[str, Path], tmp_path: Path) -> None:
    sample = ("a<|end_of_text|>", "<|start_header_id|>{code}<|end_header_id|>b<|end_of_text|>")
    pretokenize(text_folder(tmp_path / "text", train=line(*sample)), models["llama3"], tmp_path / "tokens", SETTINGS)
    ids, targets = TokenShards([tmp_path / "tokens"], "train").row(0, 0)
    assert (ids == 1).sum() == 1 and ids[-1] == 1
    assert (ids[targets[:-1]] > 5).all(), "the six special tokens come first in this vocabulary"


GOOD = line("p", "c")
BAD_LINES: dict[str, tuple[bytes, str]] = {
    "no JSON": (b'{"prompt": "p", \n', "no valid JSON"),
    "two objects": (GOOD.strip() + GOOD, "no valid JSON"),
    "blank line": (b"\n", "no valid JSON"),
    "byte order mark": (b"\xef\xbb\xbf" + GOOD, "no valid JSON"),
    "nested too deeply": (b"[" * 100_000 + b"\n", "no valid JSON"),
    "no UTF-8": (b'{"prompt": "\xff", "completion": "c"}\n', "no valid UTF-8 at byte 12"),
    "a list": (b'["p", "c"]\n', "allowed is an object"),
    "no prompt": (b'{"completion": "c"}\n', "prompt is missing, found: completion"),
    "no completion": (b'{"prompt": "p", "text": "c"}\n', "completion is missing, found: prompt, text"),
    "prompt is a number": (line(3, "c"), "prompt is of type int, allowed: a string"),
    "completion is null": (line("p", None), "completion is of type NoneType, allowed: a string"),
    "completion is a list": (line("p", ["c"]), "completion is of type list, allowed: a string"),
    "empty completion": (line("p", ""), "completion is empty, so there is nothing to learn"),
    "lone surrogate in the prompt": (
        b'{"prompt": "a\\ud83d", "completion": "c"}\n',
        "prompt has a lone surrogate at char",
    ),
    "lone surrogate after": (
        b'{"prompt": "p", "completion": "\\udc00"}\n',
        "completion has a lone surrogate at character 0",
    ),
    "half a last line": (GOOD[:-4], "no valid JSON"),
    "too long": (line("p", "c" * 2**24), "longer than 16777216 bytes"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_line(case: str, models: dict[str, Path], tmp_path: Path) -> None:
    """It is named by its number, here in the second batch of the second part."""
    content, message = BAD_LINES[case]
    text = text_folder(tmp_path / "text", train=GOOD, validation=GOOD * 1030 + content)
    with pytest.raises(CoraxError) as error:
        pretokenize(text, models["plain"], tmp_path / "tokens", SETTINGS)
    assert str(error.value).startswith(f"{text}/validation.jsonl: line 1031: {message}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text"], "nothing half-written stays"


def test_empty_dataset(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CoraxError, match="text: the dataset is empty, its files have no lines"):
        pretokenize(text_folder(tmp_path / "text"), models["plain"], tmp_path / "tokens", SETTINGS)


def test_folders_that_are_not_what_they_should_be(text: Path, models: dict[str, Path], tmp_path: Path) -> None:
    with Artifact(tmp_path / "part", stage="detokenize") as artifact:
        (artifact.path / "train.jsonl").write_bytes(GOOD)
    with Artifact(tmp_path / "weights", stage="download") as artifact:
        (artifact.path / "config.json").write_text("{}")
    (tmp_path / "loose").mkdir()
    cut = text_folder(tmp_path / "cut", train=GOOD * 3)
    (cut / "train.jsonl").write_bytes(GOOD * 2)
    plain = models["plain"]
    for source, model, message in (
        (tmp_path / "part", plain, "part/validation.jsonl: missing, a text folder has train.jsonl, validation.jsonl"),
        (text, tmp_path / "weights", "weights/tokenizer.json: missing: a model folder needs its tokenizer"),
        (text, tmp_path / "loose", "loose/manifest.json: missing"),
        (tmp_path / "none", plain, "none/manifest.json: missing"),
        (cut, plain, f"cut/train.jsonl: {2 * len(GOOD)} bytes found, {3 * len(GOOD)} in "),
    ):
        with pytest.raises(CoraxError) as error:
            pretokenize(source, model, tmp_path / "tokens", SETTINGS)
        assert message in str(error.value)
        assert not (tmp_path / "tokens").exists()


def test_tokenizer_that_changes_the_text(tmp_path: Path) -> None:
    """A tokenizer that lower-cases cannot give a completion back: the row is named."""
    with Artifact(tmp_path / "model", stage="download") as artifact:
        tiny.tokenizer_folder(artifact.path, "plain")
        path = artifact.path / "tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": {"type": "Lowercase"}}))
    text = text_folder(tmp_path / "text", train=line("p", "c") + line("p", "N"))
    with pytest.raises(CoraxError, match=r"train\.jsonl: line 2: .*the ids do not decode to the text"):
        pretokenize(text, tmp_path / "model", tmp_path / "tokens", SETTINGS)


def spoilt(rows: Rows, **changes: Any) -> Rows:
    """The rows of two samples, the second changed: `ids`, `starts` or `ends` of it."""
    first = rows.ids[: rows.offsets[1]]
    second = np.array(changes.pop("ids", rows.ids[rows.offsets[1] :]), np.uint32)
    offsets = np.array([0, len(first), len(first) + len(second)])
    return replace(
        rows, ids=np.concatenate([first, second]), offsets=offsets, **{k: np.array(v) for k, v in changes.items()}
    )


BROKEN: dict[str, tuple[Callable[[Rows, list[int], int], Rows], str]] = {
    "no end": (lambda rows, ids, n: spoilt(rows, ids=ids[:-1], ends=[n, n - 1]), "nothing to learn that is followed"),
    "no target": (
        lambda rows, ids, n: spoilt(rows, starts=[rows.starts[0], n - 1]),
        "nothing to learn that is followed",
    ),
    "two ends": (lambda rows, ids, n: spoilt(rows, ids=[*ids[:-1], 1, 1], ends=[n, n + 1]), "a special token of the"),
    "two begins": (
        lambda rows, ids, n: spoilt(
            rows, ids=[ids[0], *ids], starts=[rows.starts[0], rows.starts[1] + 1], ends=[n, n + 1]
        ),
        "a special token of the template stands where text should be",
    ),
    "another cut": (
        lambda rows, ids, n: spoilt(rows, starts=[rows.starts[0], rows.starts[1] - 1]),
        "the ids differ from those of `to",
    ),
    "another id": (
        lambda rows, ids, n: spoilt(rows, ids=[*ids[:-2], 50, 1]),
        "the ids differ from those of `tokenizers`",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_contract(case: str, models: dict[str, Path], tmp_path: Path) -> None:
    """What a faulty template or tokenizer would write (no end, no target, begin token twice, …) is refused."""
    spoil, message = BROKEN[case]
    template = Template(models["llama3"], "state", "code")
    (tmp_path / "x.jsonl").write_bytes(line("p1", "c1") + line("p2", "c2"))
    ((samples, texts),) = read_samples(tmp_path / "x.jsonl", template)
    rows = join(template, samples, encoders.Reference(template).encode(samples.texts))
    contract = Contract(template)
    assert contract.check(samples, texts, rows) == 1
    assert contract.check(samples, texts, rows, every=True) == 2
    ids, _ = rows.row(1)
    with pytest.raises(CoraxError, match=f"x.jsonl: line 2: tokenized wrongly: {message}"):
        contract.check(samples, texts, spoil(rows, ids, len(ids)), every=True)


def test_a_template_that_differs_at_inference_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    template = Template(models["llama3"], "state", "code")
    (tmp_path / "x.jsonl").write_bytes(line("p1", "c1"))
    ((samples, texts),) = read_samples(tmp_path / "x.jsonl", template)
    rows = join(template, samples, encoders.Reference(template).encode(samples.texts))

    class Other(Template):
        def prompt_ids(self, prompt: str) -> list[int]:
            return super().prompt_ids(" " + prompt)

    with pytest.raises(CoraxError, match=r"line 1: .*the prompt's ids at inference differ from those in training"):
        Contract(Other(models["llama3"], "state", "code")).check(samples, texts, rows)


def test_shards_are_read_in_any_order(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shards, a cache too small for one of their row groups."""
    monkeypatch.setattr(tokens, "CACHE_TOKENS", 1000)
    shards = TokenShards([made, made], "train")
    table = pq.read_table(made / "train.parquet")
    ids, prompt_lengths = table["input_ids"].to_pylist(), table["prompt_length"].to_pylist()
    for row in (0, 511, 512, 2559, 5, 2048):
        for shard in (0, 1):
            found, targets = shards.row(shard, row)
            assert found.tolist() == ids[row]
            assert targets.tolist() == [*range(prompt_lengths[row], len(ids[row]))]
            assert found.dtype == np.uint32
    for total, target_count in shards.lengths():
        assert total.tolist() == [len(row) for row in ids]
        assert (total - target_count).tolist() == prompt_lengths
    for row in (-1, 2560):
        with pytest.raises(CoraxError, match=f"train.parquet: row {row} does not exist, allowed: 0 to 2559"):
            shards.row(1, row)


def token_folder(path: Path, facts: Mapping[str, Any], **columns: Any) -> Path:
    """A token artifact whose Parquet files have these columns."""
    with Artifact(path, stage="pretokenize") as artifact:
        for part in PARTS:
            pq.write_table(pa.table(columns), artifact.path / f"{part}.parquet")
        artifact.note(**facts)
    return path


def test_bad_token_shards(made: Path, text: Path, models: dict[str, Path], tmp_path: Path) -> None:
    facts = read_manifest(made / "manifest.json").facts
    ids, four = pa.array([[1, 2, 3]], pa.list_(pa.uint32())), pa.array([4], pa.int32())
    three, one = pa.array([3], pa.int32()), pa.array([1], pa.int32())
    other = tmp_path / "chatml"
    pretokenize(text_folder(tmp_path / "one", train=GOOD), models["chatml"], other, SETTINGS)
    headers = tmp_path / "headers"
    pretokenize(tmp_path / "one", models["llama3"], headers, PretokenizeSettings(prompt_header="user"))
    damaged = token_folder(tmp_path / "damaged", facts, input_ids=ids, prompt_length=one, length=three)
    content = (damaged / "train.parquet").read_bytes()
    (damaged / "train.parquet").write_bytes(content[:-8] + struct.pack("<I", 7) + content[-4:])
    columns = token_folder(tmp_path / "columns", facts, input_ids=[[1, 2]], labels=[[1, 2]])
    for folders, part, message in (
        ([made], "training", "part 'training': unknown, allowed: train, validation, test"),
        ([], "train", "no token folder is given"),
        ([made, tmp_path / "none"], "train", "none/manifest.json: missing"),
        ([text], "train", "made by detokenize, not by pretokenize"),
        ([made, other], "train", "chatml: tokenizer_sha256 differs from that of "),
        ([made, headers], "train", "headers: template differs from that of "),
        ([damaged], "train", "damaged/train.parquet: no valid Parquet file: "),
        ([columns], "train", "columns/train.parquet: columns are input_ids list<element: int64>, labels list"),
    ):
        with pytest.raises(CoraxError) as error:
            TokenShards(folders, part)
        assert message in str(error.value)
    for name, prompt, total in (("long", one, four), ("target", three, three)):
        folder = token_folder(tmp_path / name, facts, input_ids=ids, prompt_length=prompt, length=total)
        with pytest.raises(CoraxError, match=r"test\.parquet: row 0 has no target token or a wrong length"):
            TokenShards([folder], "test").row(0, 0)


def test_damaged_column_is_named(made: Path, tmp_path: Path) -> None:
    """The size is right and so is the footer; the compressed ids are not."""
    with Artifact(tmp_path / "tokens", stage="pretokenize") as artifact:
        for part in PARTS:
            content = bytearray((made / f"{part}.parquet").read_bytes())
            content[40:400] = bytes(360)
            (artifact.path / f"{part}.parquet").write_bytes(content)
        artifact.note(**read_manifest(made / "manifest.json").facts)
    with pytest.raises(CoraxError, match=r"train\.parquet: no valid Parquet file: "):
        TokenShards([tmp_path / "tokens"], "train").row(0, 0)


def test_row_groups_of_another_size_are_refused(made: Path, tmp_path: Path) -> None:
    with Artifact(tmp_path / "groups", stage="pretokenize") as artifact:
        for part in PARTS:
            table = pq.read_table(made / f"{part}.parquet")
            pq.write_table(table, artifact.path / f"{part}.parquet", row_group_size=1000)
        artifact.note(**read_manifest(made / "manifest.json").facts)
    with pytest.raises(CoraxError, match=r"train\.parquet: row groups are not of 512 rows"):
        TokenShards([tmp_path / "groups"], "train")


def test_plot_is_a_function_of_its_data(tmp_path: Path) -> None:
    counts = np.bincount([3, 5, 900])
    for name, data, limit in (
        ("a", {"samples": counts}, 512),
        ("b", {"samples": counts}, 512),
        ("c", {"samples": counts}, None),
        ("empty", {"samples": counts[:0]}, None),
    ):
        lengths.plot_lengths(tmp_path / f"{name}.png", data, limit)
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c and a.startswith(b"\x89PNG")
    assert not any(keyword in a for keyword in (b"tEXt", b"tIME", b"Software"))


def test_program_ends_with_one_line(models: dict[str, Path], tmp_path: Path) -> None:
    """As a person runs it: exit code 2, no traceback, nothing written."""
    text = text_folder(tmp_path / "text", train=GOOD + b"{}\n")
    result = stages.run("pretokenize", "--text", text, "--model", models["plain"], "--output", tmp_path / "tokens")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1] == f"error: {text}/train.jsonl: line 2: prompt is missing, found: nothing"
    assert not (tmp_path / "tokens").exists()
