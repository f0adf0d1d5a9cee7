"""Inputs other than token ids: every format and kind of record becomes the text that was meant, and no other."""

import codecs
import csv
import json
import string
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import stages
from hypothesis import given, settings
from hypothesis import strategies as st

from corax.artifact import Artifact, open_artifact
from corax.detokenize import json_array
from corax.detokenize import lines as line_formats
from corax.detokenize.errors import BadRowError
from corax.detokenize.stage import detokenize
from corax.errors import CoraxError
from corax.settings.base import parse
from corax.settings.detokenize import DetokenizeSettings

PARTS = ("train", "validation", "test")

Row = Mapping[str, Any]


def write_jsonl(path: Path, rows: Sequence[Row]) -> None:
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))


def write_json(path: Path, rows: Sequence[Row]) -> None:
    """One array over many lines, as alpaca_data.json."""
    path.write_text(json.dumps(rows, indent=4, ensure_ascii=False), encoding="utf-8")


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=3)


def write_arrow_file(path: Path, rows: Sequence[Row]) -> None:
    table = pa.Table.from_pylist(list(rows))
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def write_arrow_stream(path: Path, rows: Sequence[Row]) -> None:
    """As the `datasets` library keeps its data."""
    table = pa.Table.from_pylist(list(rows))
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def write_feather(path: Path, rows: Sequence[Row]) -> None:
    feather.write_feather(pa.Table.from_pylist(list(rows)), path, compression="zstd")


WRITERS: dict[str, Callable[[Path, Sequence[Row]], None]] = {
    "rows.jsonl": write_jsonl,
    "rows.json": write_json,
    "lines.json": write_jsonl,
    "rows.csv": write_csv,
    "rows.parquet": write_parquet,
    "file.arrow": write_arrow_file,
    "stream.arrow": write_arrow_stream,
    "rows.feather": write_feather,
}


def convert(folder: Path, files: Mapping[str, Sequence[Row]], **chosen: Any) -> dict[str, list[Any]]:
    """The samples that `detokenize` makes of files, by part; without chosen shares all of them are training data."""
    shares = {"validation_share": 0.0, "test_share": 0.0}
    with Artifact(folder / "raw", stage="download") as artifact:
        for name, rows in files.items():
            write = WRITERS[name if name in WRITERS else f"rows{Path(name).suffix}"]
            write(artifact.path / name, rows)
    detokenize(folder / "raw", folder / "text", DetokenizeSettings.model_validate(shares | chosen))
    return samples(folder / "text")


def samples(folder: Path) -> dict[str, list[Any]]:
    return {
        part: [json.loads(line) for line in (folder / f"{part}.jsonl").read_bytes().split(b"\n")[:-1]] for part in PARTS
    }


PAIRS = [
    {"prompt": "1 + 1", "completion": "2"},
    {"prompt": "", "completion": "\n"},
    {"prompt": 'a "quoted", line\r\nand another', "completion": "ünï\tcode 🐦 \u2028 \x00 \\n"},
    {"prompt": " spaces ", "completion": " "},
    {"prompt": "1 + 1", "completion": "two"},
]


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_pairs_from_every_format(name: str, tmp_path: Path) -> None:
    """Texts come as they are: no trailing newline is dropped, nothing trimmed; columns stand in any order."""
    assert convert(tmp_path, {name: PAIRS})["train"] == PAIRS
    facts = open_artifact(tmp_path / "text").facts
    assert facts["kind"] == "completion" and facts["bad_rows"] == 0
    assert facts["rows"] == {"train": 5, "validation": 0, "test": 0}
    shuffled = [{"note": "x", "answer": row["completion"], "question": row["prompt"]} for row in PAIRS]
    mapped = {"prompt_column": "question", "completion_column": "answer"}
    assert convert(tmp_path / "mapped", {name: shuffled}, **mapped)["train"] == PAIRS


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "lines.json", "rows.csv"])
def test_a_byte_order_mark_is_no_text(name: str, tmp_path: Path) -> None:
    """Windows' programs begin UTF-8 with one."""
    with Artifact(tmp_path / "raw", stage="download") as artifact:
        WRITERS[name](artifact.path / name, PAIRS)
        (artifact.path / name).write_bytes(codecs.BOM_UTF8 + (artifact.path / name).read_bytes())
    shares = {"validation_share": 0, "test_share": 0}
    detokenize(tmp_path / "raw", tmp_path / "text", DetokenizeSettings.model_validate(shares))
    assert samples(tmp_path / "text")["train"] == PAIRS


ALPACA = "Below is an instruction that describes a task"
RESPOND = "Write a response that appropriately completes the request."


@pytest.mark.parametrize("name", WRITERS)
def test_alpaca(name: str, tmp_path: Path) -> None:
    """The two prompts of the published train.py, character by character; braces in the data mean nothing."""
    rows = [
        {"instruction": "Name {x} a bird.", "input": "", "output": "Raven"},
        {"instruction": "Double it.", "input": "{21}", "output": "42"},
    ]
    assert convert(tmp_path, {name: rows}, record="alpaca")["train"] == [
        {
            "prompt": f"{ALPACA}. {RESPOND}\n\n### Instruction:\nName {{x}} a bird.\n\n### Response:",
            "completion": "Raven",
        },
        {
            "prompt": f"{ALPACA}, paired with an input that provides further context. {RESPOND}\n\n"
            "### Instruction:\nDouble it.\n\n### Input:\n{21}\n\n### Response:",
            "completion": "42",
        },
    ]


def test_dolly(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Name a bird.", "context": "", "response": "Raven", "category": "open_qa"},
        {"instruction": "Who?", "context": "Corvus", "response": "corax", "category": "closed_qa"},
    ]
    assert convert(tmp_path, {"rows.jsonl": rows}, record="dolly")["train"] == [
        {"prompt": f"{ALPACA}. {RESPOND}\n\n### Instruction:\nName a bird.\n\n### Response:\n", "completion": "Raven"},
        {
            "prompt": f"{ALPACA}. {RESPOND}\n\n### Instruction:\nWho?\n\nInput:\nCorvus\n\n### Response:\n",
            "completion": "corax",
        },
    ]


CONVERSATIONS = [
    [("user", "Hello"), ("assistant", "Hi")],
    [("system", "Be brief."), ("user", ""), ("assistant", "?"), ("user", "1 + 1"), ("assistant", "2")],
]


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "rows.csv"])
def test_conversations(name: str, tmp_path: Path) -> None:
    wanted = [{"messages": [{"role": role, "content": text} for role, text in turns]} for turns in CONVERSATIONS]
    rows = [{"id": number, **row} for number, row in enumerate(wanted)]
    assert convert(tmp_path, {name: rows}, record="messages")["train"] == wanted
    assert open_artifact(tmp_path / "text").facts["kind"] == "messages"
    sharegpt = {"system": "system", "user": "human", "assistant": "gpt"}
    rows = [
        {"chat": [{"from": sharegpt[role], "value": text, "weight": None} for role, text in turns]}
        for turns in CONVERSATIONS
    ]
    chosen = {"record": "sharegpt", "messages_column": "chat"}
    assert convert(tmp_path / "sharegpt", {name: rows}, **chosen)["train"] == wanted


@pytest.mark.parametrize("name", WRITERS)
def test_plain_text(name: str, tmp_path: Path) -> None:
    rows = [{"text": "first\nsecond"}, {"text": "third"}]
    assert convert(tmp_path, {name: rows}, record="text")["train"] == rows
    assert open_artifact(tmp_path / "text").facts["kind"] == "text"


def test_other_types_of_the_same_texts(tmp_path: Path) -> None:
    """Large, viewed, dictionary-encoded and sliced columns, in Parquet and in Arrow."""
    texts = [f"text {number % 3}" for number in range(10)]
    for number, array in enumerate(
        (
            pa.array(texts, pa.large_string()),
            pa.array(texts, pa.string_view()),
            pa.array(texts).dictionary_encode(),
            pa.array(["cut", *texts])[1:],
        )
    ):
        with Artifact(tmp_path / f"raw{number}", stage="download") as artifact:
            table = pa.table({"text": array})
            pq.write_table(table, artifact.path / "a.parquet")
            with pa.ipc.new_stream(artifact.path / "b.arrow", table.schema) as writer:
                writer.write_table(table)
        for format in ("parquet", "arrow"):
            chosen = {"format": format, "record": "text", "validation_share": 0, "test_share": 0}
            output = tmp_path / f"text{number}{format}"
            detokenize(tmp_path / f"raw{number}", output, DetokenizeSettings.model_validate(chosen))
            assert [row["text"] for row in samples(output)["train"]] == texts


def test_given_parts_keep_their_rows(tmp_path: Path) -> None:
    files = {f"{part}.csv": [{"text": f"{part} {number}"} for number in range(3)] for part in PARTS}
    assert convert(tmp_path, files, record="text", validation_share=0.4) == {
        part: files[f"{part}.csv"] for part in PARTS
    }


def test_parts_below_another_folder(tmp_path: Path) -> None:
    """As hubs have them; the names mean nothing where files lie in several folders."""

    def convert_named(folder: Path, *names: str) -> dict[str, list[str]]:
        with Artifact(folder / "raw", stage="download") as artifact:
            for name in names:
                path = artifact.path / "data" / f"{name}.jsonl"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_jsonl(path, [{"text": name}])
        chosen = {"record": "text", "validation_share": 0, "test_share": 0}
        detokenize(folder / "raw", folder / "text", DetokenizeSettings.model_validate(chosen))
        return {part: [row["text"] for row in rows] for part, rows in samples(folder / "text").items()}

    assert convert_named(tmp_path / "parts", *PARTS) == {part: [part] for part in PARTS}
    assert convert_named(tmp_path / "deep", "other", "deep/test")["train"] == ["deep/test", "other"]
    with pytest.raises(CoraxError, match=r"found data/other\.jsonl, data/train\.jsonl; allowed: train\.jsonl"):
        convert_named(tmp_path / "mixed", "train", "other")


def test_rows_are_divided_by_prompt_wherever_they_stand(tmp_path: Path) -> None:
    """Also over formats: the same prompt is in the same part, whatever file it comes from."""
    rows = [{"prompt": f"question {number % 200}\t", "completion": str(number)} for number in range(600)]
    shares = {"validation_share": 0.2, "test_share": 0.2}
    found = [
        convert(tmp_path / suffix, {f"1.{suffix}": rows[:300], f"2.{suffix}": rows[300:]}, **shares)
        for suffix in ("jsonl", "csv", "parquet")
    ]
    assert found[0] == found[1] == found[2]
    prompts = [{row["prompt"] for row in part} for part in found[0].values()]
    assert sum(map(len, prompts)) == 200 and min(map(len, prompts)) > 20
    for part in found[0].values():
        numbers = [int(row["completion"]) for row in part]
        assert numbers == sorted(numbers), "the files' order stays"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_rows_are_divided_by_another_column(name: str, tmp_path: Path) -> None:
    rows = [{"text": f"page {number}", "book": number // 4} for number in range(400)]
    chosen = {"record": "text", "split_column": "book", "validation_share": 0.2, "test_share": 0.2}
    parts = convert(tmp_path, {name: rows}, **chosen).values()
    books = [{int(row["text"].split()[1]) // 4 for row in part} for part in parts]
    assert sum(map(len, books)) == 100 and sum(map(len, parts)) == 400


def test_conversations_that_begin_alike_belong_together(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"q{number % 50}"}, {"role": "assistant", "content": str(number)}]}
        for number in range(300)
    ]
    parts = convert(tmp_path, {"a.jsonl": rows}, record="messages", validation_share=0.2, test_share=0.2).values()
    questions = [{row["messages"][0]["content"] for row in part} for part in parts]
    assert sum(map(len, questions)) == 50 and all(questions)


def test_identical_samples_are_kept_once(tmp_path: Path) -> None:
    """The sample counts, not the row: another column makes no difference, another completion does."""
    rows = [{"prompt": "a", "completion": str(number % 3), "id": str(number)} for number in range(9)]
    assert len(convert(tmp_path / "all", {"rows.csv": rows})["train"]) == 9
    kept = convert(tmp_path, {"1.csv": rows, "2.csv": rows}, deduplicate=True)["train"]
    assert [row["completion"] for row in kept] == ["0", "1", "2"]
    assert open_artifact(tmp_path / "text").facts["duplicates"] == 15


def test_one_format_is_chosen_among_several(tmp_path: Path) -> None:
    files = {"a.jsonl": [{"text": "json"}], "b.csv": [{"text": "csv"}]}
    assert convert(tmp_path, files, record="text", format="csv")["train"] == [{"text": "csv"}]
    with pytest.raises(CoraxError, match=r"found a\.jsonl and b\.csv; allowed: files of one format"):
        detokenize(tmp_path / "raw", tmp_path / "other", DetokenizeSettings(record="text"))


def test_files_in_folders_and_documents_beside_them(tmp_path: Path) -> None:
    """As a hub's repository of data is laid out."""
    with Artifact(tmp_path / "raw", stage="download") as artifact:
        (artifact.path / "data").mkdir()
        (artifact.path / "README.md").write_text("about")
        (artifact.path / "dataset_infos.json").write_text("{}")
        write_parquet(artifact.path / "data" / "train-00001.parquet", [{"text": "b"}])
        write_parquet(artifact.path / "data" / "train-00000.parquet", [{"text": "a"}, {"text": None}])
    chosen = {"record": "text", "max_bad_share": 0.5, "validation_share": 0, "test_share": 0}
    detokenize(tmp_path / "raw", tmp_path / "text", DetokenizeSettings.model_validate(chosen))
    assert samples(tmp_path / "text")["train"] == [{"text": "a"}, {"text": "b"}]
    bad = json.loads((tmp_path / "text" / "bad_rows.jsonl").read_text())
    assert bad == {"file": "data/train-00000.parquet", "row": 1, "column": "text", "reason": "is null"}


def test_json_beside_other_data_describes_it(tmp_path: Path) -> None:
    """Alone it is data, but for the descriptions of the `datasets` library."""
    rows = [{"text": "a"}]
    assert convert(tmp_path, {"a.csv": rows, "words.json": [{"text": "b"}]}, record="text")["train"] == rows
    files = {"1.json": rows, "dataset_infos.json": [{"text": "b"}]}
    assert convert(tmp_path / "alone", files, record="text")["train"] == rows
    chosen = {"record": "text", "format": "json", "validation_share": 0, "test_share": 0}
    detokenize(tmp_path / "raw", tmp_path / "named", DetokenizeSettings.model_validate(chosen))
    assert samples(tmp_path / "named")["train"] == [{"text": "b"}]


def test_a_folder_of_texts(tmp_path: Path) -> None:
    """A file a sample, as it stands; beside other data they are notes."""
    texts = {"b.txt": "second\r\n", "deep/a.txt": "ünï 🐦\n\n", "a.txt": " first", "LICENSE.txt": "free"}
    with Artifact(tmp_path / "raw", stage="download") as artifact:
        (artifact.path / "deep").mkdir()
        for name, text in texts.items():
            (artifact.path / name).write_bytes(codecs.BOM_UTF8 * (name == "a.txt") + text.encode())
    shares = {"record": "text", "validation_share": 0, "test_share": 0}
    detokenize(tmp_path / "raw", tmp_path / "text", DetokenizeSettings.model_validate(shares))
    assert [row["text"] for row in samples(tmp_path / "text")["train"]] == [" first", "second\r\n", "ünï 🐦\n\n"]
    with Artifact(tmp_path / "both", stage="download") as artifact:
        (artifact.path / "notes.txt").write_text("about")
        write_json(artifact.path / "a.json", [{"text": "data"}])
    detokenize(tmp_path / "both", tmp_path / "text", DetokenizeSettings.model_validate(shares))
    assert samples(tmp_path / "text")["train"] == [{"text": "data"}]


def test_a_large_array_takes_no_more_memory_than_a_small_one(tmp_path: Path) -> None:
    """An array of 40 MB, on one line and with one element a hundred times as long as the others."""

    def peak(count: int) -> int:
        path = tmp_path / f"{count}.json"
        rows = (json.dumps({"text": f'"{number}" [' + "x" * (1000 if number else 100_000)}) for number in range(count))
        with path.open("w") as file:
            file.write("[" + next(rows))
            file.writelines(f",{row}" for row in rows)
            file.write("]")
        tracemalloc.start()
        try:
            assert line_formats.count_json(path) == count
            found = (row for batch in line_formats.json_batches(path) for row in batch)
            assert all(f'"{number}" [x' in row["text"] for number, row in enumerate(found))  # type: ignore[index]
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)
    small = peak(4_000)
    assert peak(40_000) < small + 8 * 2**20


def test_many_rows_in_small_memory_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks end after rows or bytes, whichever comes first; rows and order stay, and so do the bytes."""
    rows = [{"text": f"{number} " + "x" * (number % 50)} for number in range(3000)]
    first = {name: convert(tmp_path / name, {name: rows}, record="text")["train"] for name in WRITERS}
    assert all(found == rows for found in first.values())
    monkeypatch.setattr(line_formats, "BATCH_BYTES", 100)
    again = convert(tmp_path / "again", {"rows.csv": rows}, record="text")["train"]
    assert again == rows
    digests = {open_artifact(folder / "text").digest for folder in tmp_path.iterdir()}
    assert len(digests) == 1


any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
filled_text = any_text.filter(bool)


@settings(max_examples=80)
@given(
    rows=st.lists(st.fixed_dictionaries({"prompt": any_text, "completion": filled_text}), min_size=1, max_size=6),
    name=st.sampled_from(sorted(WRITERS)),
)
def test_no_text_is_changed(rows: list[dict[str, str]], name: str) -> None:
    """Any text in any format is read back from the JSON lines as it was written."""
    with TemporaryDirectory() as folder:
        assert convert(Path(folder), {name: rows})["train"] == rows


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "messages", "text", "x"]), inner)
    ),
    max_leaves=8,
)
turns = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": any_text}),
    max_size=5,
)


def parsed(content: bytes) -> Any:
    """What Python's own parser makes of it; None if that is no JSON."""
    try:
        return json.loads(content)
    except ValueError:
        return None


def elements(content: bytes, block_bytes: int) -> list[bytes]:
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "BLOCK_BYTES", block_bytes)
        (Path(name) / "a.json").write_bytes(content)
        return list(json_array.elements(Path(name) / "a.json", line_formats.ROW_BYTES))


@settings(max_examples=120)
@given(
    rows=st.lists(st.recursive(json_values | st.text(), lambda inner: st.dictionaries(st.text(), inner)), max_size=5),
    escaped=st.booleans(),
    indent=st.sampled_from([None, 0, "\t\r\n "]),
    before=st.sampled_from([b"", codecs.BOM_UTF8, b"\r\n "]),
    block_bytes=st.integers(1, 20) | st.just(2**20),
)
def test_any_array_has_its_elements(
    rows: list[Any], escaped: bool, indent: str | int | None, before: bytes, block_bytes: int
) -> None:
    """As Python's own parser reads it, wherever a block ends: within an escape, a letter of several bytes, a number."""
    text = json.dumps(rows, ensure_ascii=escaped, indent=indent)
    found = elements(before + text.encode("utf-8", "surrogatepass") + b" \n", block_bytes)
    assert [repr(json.loads(row.decode("utf-8", "surrogatepass"))) for row in found] == list(map(repr, rows))


@settings(max_examples=400)
@given(
    content=st.lists(st.sampled_from(['[{"a": "', "[", "]", "{", "}", ",", ":", '"', "\\", '"a"', "{}", "1", " ", "é"]))
    .map(lambda parts: "[" + "".join(parts))
    .map(str.encode),
    block_bytes=st.integers(1, 5) | st.just(2**20),
)
def test_what_is_no_array_is_an_error_or_has_a_bad_row(content: bytes, block_bytes: int) -> None:
    """Broken JSON is never read as if it were whole."""
    wanted = parsed(content)
    try:
        found = [parsed(row) for row in elements(content, block_bytes)]
    except CoraxError as error:
        assert "a.json: " in str(error) and wanted is None
        return
    assert found == wanted if wanted is not None else None in found


@settings(max_examples=100)
@given(
    rows=st.lists(
        st.dictionaries(st.sampled_from(["messages", "text", "prompt", "completion"]), json_values | turns),
        min_size=1,
        max_size=4,
    ),
    record=st.sampled_from(["completion", "messages", "sharegpt", "text", "alpaca"]),
)
def test_any_json_is_a_sample_or_a_bad_row(rows: list[dict[str, Any]], record: str) -> None:
    """No shape of JSON crashes, and what is written is what was there."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        try:
            parts = convert(folder, {"a.jsonl": rows}, record=record, max_bad_share=1.0)
        except CoraxError as error:
            assert f"the dataset is empty, all {len(rows)} rows are bad" in str(error)
            return
        bad = [json.loads(line)["row"] for line in (folder / "text" / "bad_rows.jsonl").read_bytes().splitlines()]
    good = [row for number, row in enumerate(rows) if number not in bad]
    assert len(parts["train"]) == len(good) and len(good) + len(bad) == len(rows)
    for sample, row in zip(parts["train"], good, strict=True):
        if record == "messages":
            assert sample["messages"] == [
                {"role": turn["role"], "content": turn["content"]} for turn in row["messages"]
            ]
        else:
            assert all(row[key] == text for key, text in sample.items())


@settings(max_examples=60)
@given(content=st.binary(max_size=80) | st.text(string.printable, max_size=80).map(str.encode))
def test_any_bytes_are_rows_or_one_error(content: bytes) -> None:
    """Files of every format made of anything: rows that are good or bad, or a CoraxError, and nothing else."""
    for suffix in ("jsonl", "json", "txt", "csv", "parquet", "arrow", "h5"):
        with TemporaryDirectory() as name:
            with Artifact(Path(name) / "raw", stage="download") as artifact:
                (artifact.path / f"a.{suffix}").write_bytes(content)
            chosen = DetokenizeSettings(record="completion" if suffix == "h5" else "text", max_bad_share=1.0)
            try:
                detokenize(Path(name) / "raw", Path(name) / "text", chosen)
            except CoraxError as error:
                assert str(Path(name) / "raw") in str(error)


@settings(max_examples=60)
@given(data=st.data(), name=st.sampled_from(["rows.parquet", "file.arrow", "stream.arrow", "rows.feather"]))
def test_any_damage_is_rows_or_one_error(data: st.DataObject, name: str) -> None:
    """A few bytes of a good binary file are changed: Arrow's offsets and lengths are not believed."""
    rows = [{"messages": [{"role": "user", "content": "x" * 20}, {"role": "assistant", "content": "y"}]}] * 5
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        WRITERS[name](path, rows)
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            place = data.draw(st.integers(0, len(content) - 1))
            content[place] = data.draw(st.integers(0, 255))
        with Artifact(Path(folder) / "raw", stage="download") as artifact:
            (artifact.path / name).write_bytes(content)
        try:
            detokenize(
                Path(folder) / "raw", Path(folder) / "text", DetokenizeSettings(record="messages", max_bad_share=1.0)
            )
        except CoraxError as error:
            assert str(Path(folder) / "raw") in str(error)


@settings(max_examples=100)
@given(
    rows=st.lists(st.lists(any_text, min_size=2, max_size=2), min_size=1, max_size=5),
    style=st.sampled_from([("\n", csv.QUOTE_ALL), ("\r\n", csv.QUOTE_MINIMAL)]),
)
def test_csv_as_other_programs_write_it(rows: list[list[str]], style: tuple[str, Literal[0, 1]]) -> None:
    """Either line end; quoted always or where needed."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator=style[0], quoting=style[1])
            writer.writerows([["prompt", "completion"], *rows])
        found = [row for batch in line_formats.csv_batches(path, ["prompt"]) for row in batch]
    assert [[*row.values()] for row in found if not isinstance(row, BadRowError)] == rows


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (
            {"record": "text", "prompt_column": "a"},
            "prompt_column does not belong to record text, which has text_column",
        ),
        ({"context_column": "a"}, "context_column does not belong to record completion"),
        ({"record": "chat"}, "--detokenize.record"),
        ({"format": "xlsx"}, "--detokenize.format"),
        ({"text_column": ""}, "text_column"),
    ],
)
def test_settings_that_do_not_fit(chosen: dict[str, str], message: str) -> None:
    with pytest.raises(CoraxError) as error:
        parse(DetokenizeSettings, chosen, "--detokenize.", strings=True)
    assert message in str(error.value)


def test_as_a_person_runs_it(tmp_path: Path) -> None:
    with Artifact(tmp_path / "raw", stage="download") as artifact:
        write_jsonl(artifact.path / "a.jsonl", [{"question": f"q{number}", "answer": "a"} for number in range(50)])
    options = ["--detokenize.prompt_column", "question", "--detokenize.completion_column=answer"]
    result = stages.run("detokenize", "--raw", tmp_path / "raw", "--output", tmp_path / "text", *options)
    assert result.returncode == 0, result.stderr
    assert np.array([len(part) for part in samples(tmp_path / "text").values()]).sum() == 50
