"""`verify` finds any change in a chain of artifacts and names its origin first."""

import random
import shutil
import threading
from pathlib import Path

import pytest
import report_inputs
import stages

from corax import verify
from corax.artifact import MARK, Artifact
from corax.errors import CoraxError


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `results`: a model, a dataset and a run."""
    root = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        report_inputs.write_upstream()
        report_inputs.write_run()
    return root


@pytest.fixture
def results(chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the chain; the working directory is the folder around it."""
    shutil.copytree(chain / "results", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    return Path("results")


def problems(*paths: Path) -> list[str]:
    return list(verify.problems(verify.find(paths or [Path("results")])))


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARK)


def test_what_was_written_is_right(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages.call("verify")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    count = len(files(results))
    assert lines[0].startswith(f"9 artifacts, {count - 9} files, ")


def test_a_flipped_byte_in_any_file_is_named_first(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = random.Random(0)
    for path in files(results):
        original = path.read_bytes()
        changed = bytearray(original)
        changed[places.randrange(len(changed))] ^= places.randrange(1, 256)
        path.write_bytes(changed)
        with pytest.raises(SystemExit) as exit_code:
            stages.call("verify")
        path.write_bytes(original)
        lines = capsys.readouterr().out.splitlines()
        assert exit_code.value.code == 1
        assert len(lines) == 1
        assert lines[0].startswith(f"{path}: ")
    assert problems() == []


@pytest.mark.parametrize(
    "name", ["plan/plan.json", "plan/manifest.json", "evaluation.json", "evaluation.manifest.json"]
)
def test_a_missing_file_is_named(results: Path, name: str) -> None:
    path = results / "runs" / "demo" / name
    path.unlink()
    found = problems()[0]
    assert str(path) in found or str(path).replace(".manifest", "") in found


def test_a_missing_artifact_upstream_is_named(results: Path) -> None:
    shutil.rmtree(report_inputs.RAW)
    assert str(report_inputs.RAW) in problems()[0]


def test_the_origin_comes_before_what_follows(results: Path) -> None:
    with Artifact(report_inputs.RAW, stage="generate") as artifact:
        (artifact.path / "content.txt").write_text("made again, differently")
    (results / "runs/demo/evaluation.json").write_text("{}")
    first, *_, last = problems()
    assert first.startswith(f"{report_inputs.RAW}: digest ")
    assert str(report_inputs.TEXT) in first
    assert last.startswith("results/runs/demo/evaluation.json: 2 bytes found")


def test_an_artifact_by_name_brings_all_it_was_made_from(results: Path) -> None:
    (report_inputs.RAW / "content.txt").write_text("x")
    plan = results / "runs/demo/plan"
    assert problems(plan)[0].startswith(f"{report_inputs.RAW / 'content.txt'}: 1 bytes found")
    other = results / "runs/demo/adapter/metrics.jsonl"
    other.write_text("x")
    assert not any(str(other) in problem for problem in problems(plan))
    assert any(str(other) in problem for problem in problems())


@pytest.mark.parametrize("name", ["runs/demo/plan/extra.txt", "runs/demo/plan/deep/.hidden", "stray.txt"])
def test_a_file_that_no_manifest_lists_is_named(results: Path, name: str) -> None:
    path = results / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("x")
    assert [problem.split(": ")[0] for problem in problems()] == [str(path)]


def test_unfinished_folders_and_snakemakes_marks_are_no_problem(results: Path) -> None:
    (results / "runs/demo/plan/.snakemake_timestamp").touch()
    unfinished = results / "runs/demo/.plan.host-1-ab.tmp"
    unfinished.mkdir()
    (unfinished / "plan.json").write_text("{")
    assert problems() == []


def test_artifacts_that_come_and_go_meanwhile(results: Path) -> None:
    """A workflow that runs: folders vanish between the look into their parent and the look into them."""
    ended = threading.Event()

    def write() -> None:
        while not ended.is_set():
            with Artifact(results / "models/other", stage="test") as artifact:
                for number in range(30):
                    (artifact.path / str(number)).mkdir()
                    (artifact.path / str(number) / "x").touch()
            shutil.rmtree(results / "models/other")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            verify.find([results / "datasets", results])
    finally:
        ended.set()
        writer.join()


def test_a_changed_plain_input_is_named(results: Path) -> None:
    plain = Path("data.h5")
    plain.write_text("1")
    with Artifact(results / "made", stage="test", inputs=[plain]) as artifact:
        (artifact.path / "x").write_text("x")
    assert problems() == []
    plain.write_text("2")
    assert problems()[0].startswith("data.h5: digest ")
    plain.unlink()
    assert problems() == ["data.h5: missing, though results/made/manifest.json was made from it"]


def test_all_lists_every_problem(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("models/smollm2-135m/content.txt", "runs/demo/merged/content.txt"):
        (results / name).write_text("")
    with pytest.raises(SystemExit):
        stages.call("verify", "--all")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        "results/models/smollm2-135m/content.txt",
        "results/runs/demo/merged/content.txt",
    ]


def test_the_same_artifact_by_two_paths_is_read_once(results: Path) -> None:
    chain = verify.find([results, results.absolute(), Path("results/runs/../runs/demo")])
    assert len(chain.manifests) == 9
    assert not chain.strays


@pytest.mark.parametrize("path", ["nowhere", "empty"])
def test_nothing_to_verify_is_an_error(tmp_path: Path, path: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CoraxError, match=path):
        verify.find([tmp_path / path])
