"""Artifacts: complete or absent, whatever happens while they are written; damage is found."""

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from corax import artifact, sources
from corax.artifact import Artifact, manifest_path, open_artifact, read_manifest, sha256
from corax.errors import CoraxError

SCRIPTS = Path(__file__).parent.parent / "scripts"


def write(path: Path, text: str = "content", inputs: tuple[Path, ...] = (), **values: Any) -> Path:
    """A folder with two files, one of them nested; or, by its name, a file."""
    file = path.suffix in artifact.FILE_SUFFIXES
    with Artifact(path, stage="test", inputs=inputs, settings=values, file=file) as made:
        if file:
            made.path.write_text(text)
        else:
            (made.path / "a.txt").write_text(text)
            (made.path / "deep").mkdir()
            (made.path / "deep" / "manifest.json").write_text("a file of the artifact, not its manifest")
        made.note(length=len(text))
        made.measured(speed=random.random())
    return path


@pytest.fixture(params=["folder", "file.json", "file.parquet"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def test_manifest_lists_every_file_with_its_hash(tmp_path: Path) -> None:
    manifest = open_artifact(write(tmp_path / "folder"))
    names = {"a.txt", "deep/manifest.json"}
    assert set(manifest.content["files"]) == names
    for name in names:
        content = (tmp_path / "folder" / name).read_bytes()
        assert manifest.content["files"][name] == {
            "sha256": hashlib.sha256(content).hexdigest(),
            "size": len(content),
        }
    assert manifest.facts == {"length": 7}
    assert "speed" in manifest.content["run"]
    assert manifest.artifact == tmp_path / "folder"


def test_file_has_its_manifest_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "x.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.manifest.json"]
    assert open_artifact(tmp_path / "x.json").artifact == tmp_path / "x.json"


def test_made_again_differs_in_run_alone(path: Path) -> None:
    first = open_artifact(write(path, key=1)).content
    second = open_artifact(write(path, key=1)).content
    assert {key for key in first if first[key] != second[key]} == {"run", "seal"}


def test_digest_depends_on_names_and_content(tmp_path: Path) -> None:
    digests = {open_artifact(write(tmp_path / name, text)).digest for name in ("a.json", "b.json") for text in "xy"}
    assert len(digests) == 4


def test_inputs_are_artifacts_or_plain_files(tmp_path: Path) -> None:
    source = write(tmp_path / "source")
    plain = tmp_path / "plain.h5"
    plain.write_bytes(b"12")
    inputs = open_artifact(write(tmp_path / "made", inputs=(source, plain))).content["inputs"]
    assert inputs == [
        {"path": str(source), "digest": open_artifact(source).digest},
        {"path": str(plain), "digest": hashlib.sha256(b"12").hexdigest()},
    ]


@pytest.mark.parametrize("damage", ["absent", "folder without manifest", "file cut"])
def test_incomplete_input_is_one_line(tmp_path: Path, damage: str) -> None:
    source = tmp_path / "source"
    if damage != "absent":
        write(source)
    if damage == "folder without manifest":
        (source / "manifest.json").unlink()
    if damage == "file cut":
        (source / "a.txt").write_text("")
    with pytest.raises(CoraxError) as error:
        Artifact(tmp_path / "made", stage="test", inputs=[source])
    assert str(source) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("inner", ["models/tiny", "runs/demo/x.json"])
def test_a_folder_of_artifacts_is_not_replaced(tmp_path: Path, inner: str) -> None:
    kept = write(tmp_path / inner)
    outer = kept.parent.parent if kept.suffix else kept.parent
    with pytest.raises(CoraxError, match=r"is no artifact, all in it would be deleted; name another folder"):
        Artifact(outer, stage="test")
    open_artifact(kept)


@pytest.mark.parametrize("name", ["thesis.txt", "manifest.json", ".hidden/note"])
def test_a_folder_that_is_no_artifact_is_not_replaced(tmp_path: Path, name: str) -> None:
    """Also where a manifest of something else lies in it; an empty folder is a place, Snakemake makes them."""
    kept = tmp_path / "own" / name
    kept.parent.mkdir(parents=True)
    kept.write_text('{"name": "some web page"}')
    with pytest.raises(CoraxError, match=rf"own: holds {name.partition('/')[0]} and is no artifact") as error:
        write(tmp_path / "own")
    assert "\n" not in str(error.value) and kept.read_text() and not list(tmp_path.glob(".own*"))
    (tmp_path / "empty").mkdir()
    open_artifact(write(tmp_path / "empty"))


def test_an_artifact_without_manifest_is_replaced(tmp_path: Path) -> None:
    """Snakemake deletes the manifest before it runs a job again."""
    for damage in (Path.unlink, lambda manifest: manifest.write_text("{")):
        path = write(tmp_path / "folder", "old")
        damage(path / "manifest.json")
        write(path, "new")
        assert (path / "a.txt").read_text() == "new"


def test_a_file_is_no_place_for_a_folder_nor_the_reverse(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("kept")
    (tmp_path / "x.json").mkdir()
    with pytest.raises(CoraxError, match="is a file, a folder is written here"):
        Artifact(tmp_path / "note", stage="test")
    with pytest.raises(CoraxError, match="is a folder, one file is written here"):
        Artifact(tmp_path / "x.json", stage="test", file=True)
    with pytest.raises(CoraxError, match="a name is needed"):
        Artifact(Path(), stage="test")
    with pytest.raises(CoraxError, match="must end in"):
        Artifact(tmp_path / "y", stage="test", file=True)  # its manifest would be that of the folder
    assert sorted(path.name for path in tmp_path.iterdir()) == ["note", "x.json"]


def test_failure_leaves_the_old_and_nothing_else(path: Path) -> None:
    write(path, "old")
    before = open_artifact(path).content
    with pytest.raises(ZeroDivisionError), Artifact(path, stage="test", file=path.suffix != "") as made:
        (made.path if path.suffix else made.path / "a.txt").write_text("half")
        raise ZeroDivisionError
    assert open_artifact(path).content == before
    assert not list(path.parent.glob(".*"))


def test_a_stage_that_writes_nothing_or_too_much_is_told(tmp_path: Path) -> None:
    with pytest.raises(CoraxError, match="wrote no file"), Artifact(tmp_path / "x", stage="test"):
        pass
    too_much = Artifact(tmp_path / "x.json", stage="test", file=True)
    with pytest.raises(CoraxError, match=r"wrote extra\.png, x\.json"), too_much as made:
        made.path.write_text("{}")
        made.path.with_name("extra.png").write_text("")
    with pytest.raises(CoraxError, match=r"manifest\.json"), Artifact(tmp_path / "x", stage="test") as made:
        (made.path / "manifest.json").write_text("{}")
    assert not list(tmp_path.iterdir())


def test_left_over_folders_of_dead_processes_go(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname()
    gone, kept, other = (
        tmp_path / f".x.{name}.tmp" for name in (f"{host}-{dead.pid}-ab", f"{host}-{os.getppid()}-ab", "elsewhere-1-ab")
    )
    for folder in (gone, kept, other):
        folder.mkdir()
    write(tmp_path / "x")
    assert [folder.exists() for folder in (gone, kept, other)] == [False, True, True]


WRITER = """
import itertools, os, sys
from pathlib import Path
from corax.artifact import Artifact
folder, file = Path(sys.argv[1]), Path(sys.argv[2])
for number in itertools.count(int(sys.argv[3])):
    with Artifact(folder, stage="test") as made:
        for part in range(5):
            (made.path / f"{part}.txt").write_text(f"{number}\\n" * 2000)
    with Artifact(file, stage="test", file=True) as made:
        made.path.write_text(f"{number}\\n" * 5000)
"""


def test_killed_at_any_instant_it_is_old_or_new_or_absent(tmp_path: Path) -> None:
    script = tmp_path / "writer.py"
    script.write_text(WRITER)
    folder, file = tmp_path / "folder", tmp_path / "file.json"
    instants = random.Random(1)
    complete = 0

    def written() -> str | None:
        try:
            return open_artifact(file).digest
        except CoraxError:
            return None

    for attempt in range(12):
        command = [sys.executable, str(script), str(folder), str(file), str(attempt * 100_000)]
        before = written()
        writer = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(SCRIPTS)})
        _wait(lambda: bool(list(tmp_path.glob(f".*-{writer.pid}-*"))))  # noqa: B023 - called at once
        if attempt % 2:  # on a busy machine nothing might be complete by the time of the kill
            _wait(lambda: written() not in (before, None))  # noqa: B023
        time.sleep(instants.random() * 0.08)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        for path in (folder, file):
            try:
                manifest = open_artifact(path)
            except CoraxError:
                continue
            complete += 1
            files = manifest.files()
            assert {name: sha256(name) for name in files} == {name: entry["sha256"] for name, entry in files.items()}
            assert len({name.read_text()[:8] for name in files}) == 1
    assert complete >= 4, "killed too early to show anything"
    write(folder)
    write(file)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "file.json",
        "file.manifest.json",
        "folder",
        "writer.py",
    ]


def _wait(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 kB with an artifact `made` on it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if not mount or subprocess.run([mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        write(disk / "made", "old")
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def write_text(folder: Path) -> None:
    (folder / "x.txt").write_text("x" * 1_000_000)


def write_hdf5(folder: Path) -> None:
    with h5py.File(folder / "x.h5", "w") as file:
        for number in range(10):
            file.create_dataset(str(number), data=np.zeros(100_000, np.int8))


def write_parquet(folder: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2**62, 100_000)
    parquet.write_table(pa.table({"x": values}), folder / "x.parquet")


def write_safetensors(folder: Path) -> None:
    save_file({"x": np.zeros(1_000_000, np.int8)}, folder / "x.safetensors")


@pytest.mark.parametrize("writer", [write_text, write_hdf5, write_parquet, write_safetensors])
def test_full_disk_is_one_line_and_keeps_the_old(small_disk: Path, writer: Callable[[Path], None]) -> None:
    with pytest.raises(CoraxError) as error, Artifact(small_disk / "made", stage="test") as made:
        writer(made.path)
    assert str(error.value) == f"{small_disk / 'made'}: the disk is full"
    assert [path.name for path in small_disk.iterdir()] == ["made"]
    assert open_artifact(small_disk / "made").facts == {"length": 3}


def test_full_disk_while_the_manifest_is_written(small_disk: Path) -> None:
    free = shutil.disk_usage(small_disk).free
    with pytest.raises(CoraxError, match="the disk is full"), Artifact(small_disk / "new", stage="test") as made:
        (made.path / "x").write_bytes(b"x" * (free - 4096))
        made.note(long="x" * 10_000)
    assert [path.name for path in small_disk.iterdir()] == ["made"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(values=JSON, place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
@settings(max_examples=30)
def test_any_settings_are_kept_and_a_changed_byte_is_found(
    tmp_path_factory: pytest.TempPathFactory, values: Any, place: float, change: int
) -> None:
    path = manifest_path(write(tmp_path_factory.getbasetemp() / "flipped", values=values))
    assert repr(read_manifest(path).content["settings"]) == repr({"values": values})
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= change
    path.write_bytes(content)
    with pytest.raises(CoraxError, match=r"damaged|differs"):
        read_manifest(path)


def test_a_changed_byte_is_found_all_over_a_manifest(tmp_path: Path) -> None:
    path = manifest_path(write(tmp_path / "x", inputs=(write(tmp_path / "source"),), key=[1.5, "text"]))
    content = path.read_bytes()
    for place in (place for place in range(len(content)) if place % 4 == 0 or content[place] == ord("\n")):
        change = 7 if content[place] == ord("\n") else 1  # 7 turns a line feed into a carriage return
        path.write_bytes(content[:place] + bytes([content[place] ^ change]) + content[place + 1 :])
        with pytest.raises(CoraxError, match=r"damaged|differs"):
            read_manifest(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"null", b"\xff\xfe", b"[" * 100_000, b'{"seal": "x"}'])
def test_what_is_no_manifest_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(CoraxError) as error:
        read_manifest(path)
    assert str(error.value).startswith(f"{path}: ")


def test_an_edited_and_resealed_manifest_does_not_keep_its_digest(tmp_path: Path) -> None:
    path = manifest_path(write(tmp_path / "x"))
    content = json.loads(path.read_text())
    content["files"]["a.txt"]["sha256"] = "0" * 64
    path.write_text(artifact._seal(content))
    with pytest.raises(CoraxError, match="differs"):
        read_manifest(path)


IMPORTED = """
import json, runpy, sys
runpy.run_path(sys.argv[1])
print(json.dumps([module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "corax"]))
"""


@pytest.mark.parametrize("script", ["verify", "report", "plan"])
def test_sources_of_a_script_are_what_it_imports(script: str) -> None:
    path = SCRIPTS / f"{script}.py"
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    command = [sys.executable, "-c", IMPORTED, str(path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert {Path(name) for name in json.loads(result.stdout)} | {path} == set(sources.of(path))


def test_digest_of_sources_changes_with_the_script(tmp_path: Path) -> None:
    scripts = [tmp_path / name for name in ("a.py", "b.py")]
    for number, script in enumerate(scripts):
        script.write_text(f"from corax import errors\nprint({number})\n")
    assert len({sources.digest(script) for script in scripts}) == 2
    assert all(SCRIPTS / "corax" / "errors.py" in sources.of(script) for script in scripts)
