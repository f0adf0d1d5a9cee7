"""HDF5 ids to text: the specification's rows, any text there and back, and every kind of bad input."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
import pytest
import stages
import tiny
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from corax import vocabulary
from corax.artifact import Artifact, open_artifact
from corax.detokenize.block import Spans
from corax.detokenize.hashing import Seen, digests, shares
from corax.detokenize.rows import Checker, Padding, Rows
from corax.detokenize.stage import detokenize
from corax.errors import CoraxError
from corax.settings.detokenize import DetokenizeSettings

PARTS = ("train", "validation", "test")
EXPECTED = [json.loads(line) for line in (tiny.DATA / "split_data_0.expected.jsonl").read_text().splitlines()]
SPECIAL = ("<PAD>", "<SOS>", "<EOS>")
WORDS = vocabulary.load("quantum")

Tables = Mapping[str, Any]


def write_h5(path: Path, tables: Tables, **options: Any) -> None:
    with h5py.File(path, "w") as file:
        for name, values in tables.items():
            file.create_dataset(name, data=values, **options)


def example_tables(rows: int = 32) -> dict[str, Any]:
    with h5py.File(tiny.DATA / "split_data_0.h5") as file:
        return {name: file[name][:rows] for name in ("state", "code")}


def raw_folder(path: Path, files: Mapping[str, Tables | bytes]) -> Path:
    """A raw artifact of HDF5 files (tables) or other files (bytes)."""
    with Artifact(path, stage="download") as artifact:
        for name, content in files.items():
            if isinstance(content, bytes):
                (artifact.path / name).write_bytes(content)
            else:
                write_h5(artifact.path / name, content)
    return path


def padded(rows: list[list[int]], dtype: str = "int8") -> Any:
    result = np.zeros((len(rows), max(map(len, rows))), dtype)
    for index, row in enumerate(rows):
        result[index, : len(row)] = row
    return result


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON lines file; `splitlines` would also break at U+0085 and others."""
    return [json.loads(line) for line in path.read_bytes().decode().split("\n")[:-1]]


def samples(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {part: lines(folder / f"{part}.jsonl") for part in PARTS}


def test_rows_of_the_specification(tmp_path: Path) -> None:
    """Both vintages of the program text, with and without a last newline, divided by a hash of the prompt."""
    content = (tiny.DATA / "split_data_0.h5").read_bytes()
    raw = raw_folder(tmp_path / "raw", {"split_data_0.h5": content})
    stages.call("detokenize", "--raw", raw, "--output", tmp_path / "text", "--detokenize.validation_share", 0.3)
    parts = samples(tmp_path / "text")
    found = {sample["prompt"]: sample["completion"] for part in parts.values() for sample in part}
    assert found == {row["state"]: row["code"].removesuffix("\n") for row in EXPECTED}
    manifest = open_artifact(tmp_path / "text")
    assert manifest.facts["rows"] == {part: len(rows) for part, rows in parts.items()}
    assert manifest.facts["bad_rows"] == 0 == (tmp_path / "text" / "bad_rows.jsonl").stat().st_size
    assert len(parts["validation"]) > 2


def test_given_parts_stay_and_order_too(tmp_path: Path) -> None:
    tables = example_tables()
    slices = {"train": slice(0, 20), "validation": slice(20, 27), "test": slice(27, 32)}
    files = {f"{part}.h5": {name: ids[rows] for name, ids in tables.items()} for part, rows in slices.items()}
    detokenize(raw_folder(tmp_path / "raw", files), tmp_path / "text", DetokenizeSettings())
    for part, rows in samples(tmp_path / "text").items():
        wanted = [
            {"prompt": row["state"], "completion": row["code"].removesuffix("\n")} for row in EXPECTED[slices[part]]
        ]
        assert rows == wanted


@pytest.mark.parametrize(
    "layout", [{"maxshape": (None, 1024)}, {"chunks": (1100, 16)}, {"chunks": (300, 64), "compression": "gzip"}, {}]
)
def test_same_bytes_again_and_across_blocks(layout: dict[str, Any], tmp_path: Path) -> None:
    """More rows than a block of 1024: in h5py's own chunks, in others that do not divide it, and in none."""
    tables = {name: np.tile(ids, (40, 1)) for name, ids in example_tables().items()}
    with Artifact(tmp_path / "raw", stage="download") as artifact:
        write_h5(artifact.path / "a.h5", tables, **layout)
    for name in ("first", "second"):
        detokenize(tmp_path / "raw", tmp_path / name, all_train())
    text = (tmp_path / "first" / "train.jsonl").read_bytes()
    assert text == (tmp_path / "second" / "train.jsonl").read_bytes()
    wanted = [{"prompt": row["state"], "completion": row["code"].removesuffix("\n")} for row in EXPECTED]
    assert lines(tmp_path / "first" / "train.jsonl") == wanted * 40


def all_train(**chosen: Any) -> DetokenizeSettings:
    """Everything in train.jsonl, in order."""
    return DetokenizeSettings(validation_share=0, test_share=0, **chosen)


any_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4)


@settings(max_examples=80)
@example(tokens=["\n", ";\n", '"', "\\", "\x00", "\u2028", "𝄞"], rows=[([3, 4], [9, 5, 3]), ([], [7, 4])], dtype="int8")
@given(
    tokens=st.lists(any_text, min_size=1, max_size=12, unique=True),
    rows=st.lists(st.tuples(st.lists(st.integers(3, 14), max_size=8), st.lists(st.integers(3, 14), min_size=1))),
    dtype=st.sampled_from(["int8", "uint8", "int16", "uint16", "int32", "uint64"]),
)
def test_text_to_ids_and_back(tokens: list[str], rows: list[tuple[list[int], list[int]]], dtype: str) -> None:
    """Any vocabulary, any rows, any integer type: what was written is read, less one trailing newline."""
    words = [*SPECIAL, *(token for token in tokens if token not in SPECIAL)]
    rows = [tuple([min(number, len(words) - 1) for number in ids] for ids in row) for row in rows]  # type: ignore[misc]
    texts = [tuple("".join(words[number] for number in ids) for ids in row) for row in rows]
    used = [index for index, (_, completion) in enumerate(texts) if completion != "\n"]
    assume(used and len(words) > 3)
    columns = [padded([[1, *rows[index][column], 2] for index in used], dtype) for column in (0, 1)]
    with TemporaryDirectory() as name:
        root = Path(name)
        (root / "words.json").write_text(json.dumps({token: number for number, token in enumerate(words)}))
        raw = raw_folder(root / "raw", {"a.h5": {"q": columns[0], "a": columns[1]}})
        chosen = {"prompt_column": "q", "completion_column": "a", "vocabulary": str(root / "words.json")}
        detokenize(raw, root / "text", DetokenizeSettings.model_validate(chosen | {"validation_share": 0.3}))
        parts = samples(root / "text").values()
    found = [(sample["prompt"], sample["completion"]) for part in parts for sample in part]
    assert sorted(found) == sorted((texts[index][0], texts[index][1].removesuffix("\n")) for index in used)
    prompts = [{sample["prompt"] for sample in part} for part in parts]
    assert sum(map(len, prompts)) == len(set.union(*prompts)), "no part knows another's prompts"


def test_raw_text_is_strict_json_lines(tmp_path: Path) -> None:
    """Line separators inside a text do not break a line."""
    words = {token: number for number, token in enumerate([*SPECIAL, "a\u2028b\n", "ü"])}
    (tmp_path / "words.json").write_text(json.dumps(words))
    tables = {"state": padded([[1, 4, 2]]), "code": padded([[1, 3, 3, 2]])}
    raw = raw_folder(tmp_path / "raw", {"a.h5": tables})
    detokenize(raw, tmp_path / "text", all_train(vocabulary=str(tmp_path / "words.json")))
    written = (tmp_path / "text" / "train.jsonl").read_bytes()
    assert written == '{"prompt": "ü", "completion": "a\u2028b\\na\u2028b"}\n'.encode()


SIDES: dict[Padding, Callable[[str], str]] = {
    Padding.RIGHT: lambda row: row.rstrip("0"),
    Padding.LEFT: lambda row: row.lstrip("0"),
    Padding.NONE: lambda row: row,
}


@settings(max_examples=300)
@given(
    rows=st.lists(st.lists(st.sampled_from([0, 0, 1, 2, 3, 4, -2, -1, 5, 6]), max_size=7)),
    shift=st.lists(st.integers(0, 150), max_size=3),
    padding=st.sampled_from(Padding),
    dtype=st.sampled_from(["int8", "int16", ">i2", "int64"]),
)
def test_what_a_well_formed_row_is(rows: list[list[int]], shift: list[int], padding: Padding, dtype: str) -> None:
    """Short rows, and rows that are longer than what is compared with <PAD> at once."""
    rows += [[0] * zeros + row + [0] * zeros for row, zeros in zip(rows, shift, strict=False)]
    checker = Checker(vocabulary.Vocabulary((*SPECIAL, "a", "b")))
    offsets = np.cumsum([0, *map(len, rows)])
    given_rows = Rows(np.array([number for row in rows for number in row], dtype), offsets, padding)
    found = checker.texts(given_rows)
    for index, row in enumerate(rows):
        body = SIDES[padding]("".join(str(number) if 0 <= number <= 4 else "x" for number in row))
        if body[:1] == "1" and body[-1:] == "2" and len(body) > 1 and set(body[1:-1]) <= {"3", "4"}:
            start, stop = found[:, index]
            assert "".join(map(str, given_rows.ids[start:stop])) == body[1:-1]
            assert offsets[index] < start <= stop < offsets[index + 1]
        else:
            assert found[:, index].tolist() == [-1, -1]
            assert checker.fault(given_rows, index, "code").reason


def test_padding_that_a_type_cannot_hold(tmp_path: Path) -> None:
    """In int8 the bits of id 130 are those of -126, which is no id."""
    words = {"<SOS>": 1, "<EOS>": 2, "<PAD>": 130, **{f"w{number}": number for number in (0, *range(3, 130))}}
    (tmp_path / "words.json").write_text(json.dumps(words))
    ids = np.array([[1, 3, 2], [2**7 - 1, -126, -126]], "int8")
    ids[1, :2] = [1, 2]
    raw = raw_folder(tmp_path / "raw", {"a.h5": {"state": ids, "code": ids}})
    with pytest.raises(CoraxError, match="row 1: state id -126 at position 2 is outside the vocabulary"):
        detokenize(raw, tmp_path / "text", DetokenizeSettings(vocabulary=str(tmp_path / "words.json")))


def ragged(rows: list[list[int]], dtype: str = "int8") -> Any:
    result = np.empty(len(rows), object)
    result[:] = [np.array(row, dtype) for row in rows]
    return result


def unpadded(ids: Any) -> list[list[int]]:
    return [row[row != 0].tolist() for row in ids]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
@pytest.mark.parametrize("layout", ["right", "left", "ragged", "mixed"])
def test_padded_left_or_ragged_gives_the_same_text(layout: str, dtype: str, tmp_path: Path) -> None:
    tables = {name: ids.astype(dtype) for name, ids in example_tables().items()}
    left = {name: np.array([np.roll(row, (row == 0).sum()) for row in ids]) for name, ids in tables.items()}
    (tmp_path / "raw").mkdir()
    with Artifact(tmp_path / "raw", stage="download") as artifact:
        if layout == "ragged":
            with h5py.File(artifact.path / "a.h5", "w") as file:
                for name, ids in tables.items():
                    file.create_dataset(name, data=ragged(unpadded(ids), dtype), dtype=h5py.vlen_dtype(dtype))
        else:
            layouts = {"right": tables, "left": left, "mixed": tables | {"code": left["code"]}}
            write_h5(artifact.path / "a.h5", layouts[layout])
    detokenize(tmp_path / "raw", tmp_path / "text", all_train())
    wanted = [{"prompt": row["state"], "completion": row["code"].removesuffix("\n")} for row in EXPECTED]
    assert lines(tmp_path / "text" / "train.jsonl") == wanted


@settings(max_examples=60, derandomize=True)
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=3))
def test_any_damage_is_rows_or_one_error(damage: list[tuple[float, int]]) -> None:
    """A few bytes of a good file are changed."""
    with TemporaryDirectory() as name:
        path = Path(name) / "a.h5"
        write_h5(path, {key: ids[:, :16] for key, ids in example_tables(4).items()})
        content = bytearray(path.read_bytes())
        for place, byte in damage:
            content[int(place * len(content))] = byte
        raw = raw_folder(Path(name) / "raw", {"a.h5": bytes(content)})
        try:
            detokenize(raw, Path(name) / "text", DetokenizeSettings(max_bad_share=1.0))
        except CoraxError as error:
            assert str(raw) in str(error)


def test_configured_padding_is_not_guessed(tmp_path: Path) -> None:
    """One row of two is padded left: by itself it is right, with the other one wrong."""
    ids = np.array([[1, 46, 2, 0], [0, 1, 46, 2]], "int8")
    raw = raw_folder(tmp_path / "raw", {"a.h5": {"state": ids, "code": ids}})
    for padding, row in (("right", 1), ("left", 0)):
        with pytest.raises(CoraxError, match=rf"a\.h5: row {row}: state "):
            detokenize(raw, tmp_path / "text", DetokenizeSettings(padding=padding))  # type: ignore[arg-type]


def test_published_hashes() -> None:
    """The values of the published implementation of MurmurHash3_x64_128."""
    texts = [b"", b"hello", b"The quick brown fox jumps over the lazy dog"]
    found = [f"{high:016x}{low:016x}" for high, low in digests(*Spans.of(texts)).tolist()]
    assert found == ["0" * 32, "cbd8a7b341bd9b025b1e906a48ae1d19", "e34bbc7bbc071b6c7a433ca9c49a9347"]


@settings(max_examples=50)
@given(st.lists(st.lists(st.binary(max_size=40), max_size=30), max_size=8))
def test_what_was_seen(batches: list[list[bytes]]) -> None:
    seen, before = Seen(), set[bytes]()
    for batch in batches:
        for text, new in zip(batch, seen.add(digests(*Spans.of(batch))), strict=True):
            assert new == (text not in before)
            before.add(text)


def test_what_was_seen_grows() -> None:
    texts = [str(number % 7000).encode() for number in range(20_000)]
    seen = Seen()
    new = np.concatenate([seen.add(digests(*Spans.of(texts[row : row + 1000]))) for row in range(0, 20_000, 1000)])
    assert np.flatnonzero(new).tolist() == list(range(7000))


def test_prompts_are_divided_in_the_given_shares(tmp_path: Path) -> None:
    places = shares(digests(*Spans.of(str(number).encode() for number in range(20_000))))
    counts, _ = np.histogram(places, bins=20, range=(0, 1))
    assert counts.min() > 850 and counts.max() < 1150
    tables = {name: np.tile(ids, (2, 1)) for name, ids in example_tables().items()}
    raw = raw_folder(tmp_path / "raw", {"a.h5": tables})
    detokenize(raw, tmp_path / "text", DetokenizeSettings(validation_share=0.2, test_share=0.3))
    prompts = [{row["prompt"] for row in rows} for rows in samples(tmp_path / "text").values()]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) and all(prompts)


def test_identical_samples_are_kept_once(tmp_path: Path) -> None:
    """In the files' order, so that no training sample is a test sample."""
    tables = example_tables()
    files = {"test.h5": slice(0, 4), "train.h5": slice(2, 20), "validation.h5": slice(18, 32)}
    content = {name: {key: ids[rows] for key, ids in tables.items()} for name, rows in files.items()}
    detokenize(raw_folder(tmp_path / "raw", content), tmp_path / "text", DetokenizeSettings(deduplicate=True))
    parts = samples(tmp_path / "text")
    completions = [row["code"].removesuffix("\n") for row in EXPECTED]
    wanted = {"test": completions[:4], "train": completions[4:20], "validation": completions[20:]}
    assert {part: [row["completion"] for row in rows] for part, rows in parts.items()} == wanted
    facts = open_artifact(tmp_path / "text").facts
    assert (facts["duplicates"], facts["kind"]) == (4, "completion")


def spoiled(column: str, row: int, change: Callable[[Any], object]) -> dict[str, Any]:
    tables = example_tables(8)
    change(tables[column][row])
    return tables


def end_of(ids: Any) -> int:
    return int(np.flatnonzero(ids == 2)[0])


def put(place: int | Callable[[Any], int], value: int) -> Callable[[Any], None]:
    def change(ids: Any) -> None:
        ids[place if isinstance(place, int) else place(ids)] = value

    return change


def fill(*ids: int) -> Callable[[Any], None]:
    def change(row: Any) -> None:
        row[:] = 0
        row[: len(ids)] = ids

    return change


BAD_ROWS: dict[str, tuple[str, Callable[[Any], None], str]] = {
    "id outside the vocabulary": ("code", put(9, 51), "code id 51 at position 9 is outside the vocabulary (0 to 50)"),
    "negative id": ("state", put(9, -7), "state id -7 at position 9 is outside the vocabulary (0 to 50)"),
    "id outside in the padding": ("code", put(-1, 99), "code id 99 at position 1023 is outside the vocabulary"),
    "no end": ("code", put(end_of, 0), "code has no <EOS>"),
    "no end, full width": ("state", lambda ids: ids.__setitem__(slice(1, None), 3), "state has no <EOS>"),
    "two ends": ("code", put(lambda ids: end_of(ids) + 1, 2), "code has a second <EOS> at position"),
    "end inside": ("state", put(5, 2), "state has a second <EOS> at position"),
    "padding inside": ("code", put(5, 0), "code has <PAD> at position 5 before <EOS>"),
    "padding to the left": ("code", fill(0, 1, 3, 2), "code does not begin with <SOS>"),
    "no start": ("state", put(0, 3), "state does not begin with <SOS>"),
    "two starts": ("state", put(1, 1), "state has a second <SOS> at position 1"),
    "text after the end": ("code", put(-1, 5), "code has id 5 at position 1023 after <EOS>, allowed: <PAD>"),
    "start after the end": ("code", put(-1, 1), "code has a second <SOS> at position 1023"),
    "nothing but padding": ("code", fill(), "code does not begin with <SOS>"),
    "empty completion": ("code", fill(1, 2), "code is empty"),
    "completion of a newline only": ("code", fill(1, 44, 2), "code is empty"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_row_stops_or_is_reported(case: str, tmp_path: Path) -> None:
    column, change, reason = BAD_ROWS[case]
    raw = raw_folder(tmp_path / "raw", {"a.h5": example_tables(8), "b.h5": spoiled(column, 3, change)})
    with pytest.raises(CoraxError) as error:
        detokenize(raw, tmp_path / "text", DetokenizeSettings())
    assert str(error.value).startswith(f"{raw}/b.h5: row 3: {reason}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"], "nothing half-written stays"

    detokenize(raw, tmp_path / "text", DetokenizeSettings(max_bad_share=0.07))
    (entry,) = lines(tmp_path / "text" / "bad_rows.jsonl")
    assert (entry["file"], entry["row"]) == ("b.h5", 3)
    assert f"{entry['column']} {entry['reason']}".startswith(reason)
    facts = open_artifact(tmp_path / "text").facts
    assert (facts["bad_rows"], sum(facts["rows"].values())) == (1, 15)


def test_first_bad_row_is_named_where_several_are_too_many(tmp_path: Path) -> None:
    tables = example_tables(8)
    tables["code"][[2, 5, 7], 0] = 0
    raw = raw_folder(tmp_path / "raw", {"a.h5": tables})
    with pytest.raises(
        CoraxError, match=r"a\.h5: row 2: .* \(3 bad rows so far, 2 allowed by detokenize.max_bad_share 0\.25\)"
    ):
        detokenize(raw, tmp_path / "text", DetokenizeSettings(max_bad_share=0.25))


def test_prompt_of_another_width_may_be_empty(tmp_path: Path) -> None:
    raw = raw_folder(tmp_path / "raw", {"a.h5": {"state": padded([[1, 2]]), "code": example_tables(1)["code"]}})
    detokenize(raw, tmp_path / "text", all_train())
    (sample,) = lines(tmp_path / "text" / "train.jsonl")
    assert sample == {"prompt": "", "completion": EXPECTED[0]["code"].removesuffix("\n")}


def linked(path: Path) -> bytes:
    """An HDF5 file whose column `state` is a link into another file."""
    write_h5(path / "other.h5", example_tables(8))
    with h5py.File(path / "link.h5", "w") as file:
        file["state"] = h5py.ExternalLink(str(path / "other.h5"), "state")
        file["code"] = example_tables(8)["code"]
    return (path / "link.h5").read_bytes()


def external(path: Path) -> bytes:
    """An HDF5 file whose column `code` is the bytes of some other file."""
    (path / "secret.txt").write_bytes(bytes(8 * 1024))
    with h5py.File(path / "external.h5", "w") as file:
        file["state"] = example_tables(8)["state"]
        file.create_dataset("code", (8, 1024), "int8", external=[(str(path / "secret.txt"), 0, 8 * 1024)])
    return (path / "external.h5").read_bytes()


def damaged_chunk(path: Path) -> bytes:
    """An HDF5 file of the right size with wrong bytes in its compressed data."""
    write_h5(path / "gzip.h5", example_tables(8), compression="gzip", chunks=(8, 1024))
    with h5py.File(path / "gzip.h5") as file:
        offset = file["code"].id.get_chunk_info(0).byte_offset
    content = bytearray((path / "gzip.h5").read_bytes())
    content[offset + 20 : offset + 60] = b"\xff" * 40
    return bytes(content)


def tables(**columns: Any) -> dict[str, Any]:
    return example_tables(8) | columns


WHOLE = (tiny.DATA / "split_data_0.h5").read_bytes()
BAD_FILES: dict[str, tuple[Callable[[Path], Mapping[str, Tables | bytes]], str]] = {
    "truncated": (lambda _: {"a.h5": WHOLE[: len(WHOLE) // 2]}, "a.h5: no complete HDF5 file: "),
    "last byte missing": (lambda _: {"a.h5": WHOLE[:-1]}, "a.h5: no complete HDF5 file: "),
    "no HDF5": (lambda _: {"a.h5": b"ids,ids\n1,2\n"}, "a.h5: no complete HDF5 file: "),
    "no bytes": (lambda _: {"a.h5": b""}, "a.h5: no complete HDF5 file: "),
    "damaged chunk": (lambda path: {"a.h5": damaged_chunk(path)}, "a.h5: rows from 0 cannot be read: "),
    "no file": (lambda _: {"readme.md": b"hello"}, ": no data file (*.h5, *.hdf5, *.jsonl, "),
    "missing column": (
        lambda _: {"a.h5": {"state": example_tables()["state"], "program": [[1]]}},
        "a.h5: column code is missing, found: program, state",
    ),
    "column is a folder": (
        lambda _: {"a.h5": {"state/ids": [[1]], "code": [[1]]}},
        "a.h5: column state is missing, found: code, state",
    ),
    "real numbers": (
        lambda _: {"a.h5": tables(code=np.ones((8, 9), "float32"))},
        "a.h5: column code has type float32, allowed: integers",
    ),
    "texts": (lambda _: {"a.h5": tables(state=[[b"a"]] * 8)}, "a.h5: column state has type object, allowed: integers"),
    "one dimension": (
        lambda _: {"a.h5": tables(state=np.ones(8, "int8"))},
        "a.h5: column state has shape (8,), allowed: rows × ids",
    ),
    "different rows": (
        lambda _: {"a.h5": tables(code=np.ones((7, 9), "int8"))},
        "a.h5: state has 8 rows, code has 7",
    ),
    "no rows": (
        lambda _: {"a.h5": tables(state=np.ones((0, 9), "int8"), code=np.ones((0, 9), "int8"))},
        ": the dataset is empty, its 1 hdf5 files have no rows",
    ),
    "no width": (
        lambda _: {"a.h5": tables(state=np.ones((8, 0), "int8"))},
        "a.h5: row 0: state does not begin with <SOS>",
    ),
    "a part missing": (
        lambda _: {"train.h5": example_tables(), "test.h5": example_tables()},
        ": found test.h5, train.h5; allowed: train.h5, validation.h5 and test.h5, or only other names",
    ),
    "parts and others": (
        lambda _: {f"{name}.h5": example_tables() for name in (*PARTS, "more")},
        ": found more.h5, test.h5, train.h5, validation.h5; allowed: ",
    ),
    "link to another file": (
        lambda path: {"a.h5": linked(path)},
        "a.h5: column state lies in another file, which is not followed",
    ),
    "data in another file": (
        lambda path: {"a.h5": external(path)},
        "a.h5: column code lies in another file, which is not followed",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(case: str, tmp_path: Path) -> None:
    make, message = BAD_FILES[case]
    raw = raw_folder(tmp_path / "raw", make(tmp_path))
    with pytest.raises(CoraxError) as error:
        detokenize(raw, tmp_path / "text", DetokenizeSettings(max_bad_share=0.0))
    assert message in str(error.value) and str(raw) in str(error.value)
    assert not list(tmp_path.glob("*text*")) and not list(tmp_path.glob(".*"))


def test_only_bad_rows_are_no_dataset(tmp_path: Path) -> None:
    raw = raw_folder(tmp_path / "raw", {"a.h5": tables(code=np.zeros((8, 4), "int8"))})
    with pytest.raises(CoraxError, match="raw: the dataset is empty, all 8 rows are bad"):
        detokenize(raw, tmp_path / "text", DetokenizeSettings(max_bad_share=1.0))


GOOD = {"<PAD>": 0, "<SOS>": 1, "<EOS>": 2, "a": 3}
BAD_VOCABULARIES: dict[str, tuple[str | bytes, str]] = {
    "no JSON": ("{", "no valid JSON"),
    "no UTF-8": (b'{"\xff": 0}', "no valid JSON"),
    "nested too deeply": ("[" * 100_000, "no valid JSON"),
    "a list": (json.dumps(list(GOOD)), "must be a JSON object {token: id}"),
    "empty": ("{}", "<PAD> is missing"),
    "no end": (json.dumps({"<PAD>": 0, "<SOS>": 1, "a": 2}), "<EOS> is missing"),
    "a gap": (json.dumps(GOOD | {"b": 5}), "'b' has id 5, allowed: 0 to 4 without gaps"),
    "from one": (json.dumps({key: number + 1 for key, number in GOOD.items()}), "'a' has id 4, allowed: 0 to 3"),
    "one id twice": (json.dumps(GOOD | {"b": 3}), "'b' and 'a' have the same id 3"),
    "one token twice": ('{"<PAD>": 0, "<SOS>": 1, "<EOS>": 2, "a": 3, "a": 4}', "the token 'a' has two ids"),
    "id is text": (json.dumps(GOOD | {"b": "4"}), "'b' has id '4', allowed: "),
    "id is true": (json.dumps({"<PAD>": 0, "<SOS>": True, "<EOS>": 2}), "'<SOS>' has id True, allowed: "),
    "id is negative": (json.dumps(GOOD | {"b": -1}), "'b' has id -1, allowed: "),
    "empty token": (json.dumps(GOOD | {"": 4}), "the token '' of id 4 is no text"),
    "lone surrogate": ('{"<PAD>": 0, "<SOS>": 1, "<EOS>": 2, "\\ud800": 3}', "of id 3 is no text"),
    "too many": (
        json.dumps({str(number): number for number in range(65_537)}),
        "65537 entries, allowed: at most 65536",
    ),
}


@pytest.mark.parametrize("case", BAD_VOCABULARIES)
def test_bad_vocabulary(case: str, tmp_path: Path) -> None:
    content, message = BAD_VOCABULARIES[case]
    path = tmp_path / "words.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CoraxError) as error:
        vocabulary.load(str(path))
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)


def test_vocabulary_by_task_or_path(tmp_path: Path) -> None:
    assert {token: number for number, token in enumerate(WORDS.tokens)} == json.loads(
        (tiny.DATA / "vocab.json").read_text()
    )
    with pytest.raises(CoraxError, match=r"vocabulary 'quantums': no such task, allowed: .*quantum.*json"):
        vocabulary.load("quantums")
    with pytest.raises(CoraxError, match=r"none\.json: No such file"):
        vocabulary.load(str(tmp_path / "none.json"))


def test_largest_vocabulary(tmp_path: Path) -> None:
    """65,536 entries; ids beyond 32,767 need 16 bits without a sign."""
    words = {
        **{token: number for number, token in enumerate(SPECIAL)},
        **{f"t{number} ": number for number in range(3, 2**16)},
    }
    (tmp_path / "words.json").write_text(json.dumps(words))
    ids = padded([[1, 65_535, 40_000, 2]], "uint16")
    raw = raw_folder(tmp_path / "raw", {"a.h5": {"state": ids, "code": ids}})
    detokenize(raw, tmp_path / "text", all_train(vocabulary=str(tmp_path / "words.json")))
    assert lines(tmp_path / "text" / "train.jsonl") == [{"prompt": "t65535 t40000 ", "completion": "t65535 t40000 "}]


def test_program_ends_with_one_line(tmp_path: Path) -> None:
    """As a person runs it: exit code 2, no traceback, nothing written."""
    raw = raw_folder(tmp_path / "raw", {"a.h5": spoiled("code", 3, put(9, 51))})
    result = stages.run("detokenize", "--raw", raw, "--output", tmp_path / "text")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith(f"error: {raw}/a.h5: row 3: code id 51 at position 9")
    assert not (tmp_path / "text").exists()
    missing = stages.run("detokenize", "--raw", tmp_path / "none", "--output", tmp_path / "text")
    assert missing.returncode == 2 and "none/manifest.json: missing" in missing.stderr.splitlines()[-1]
