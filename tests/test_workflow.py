"""The workflow itself: the real DAG with a tiny model, from generated data to the report."""

import base64
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import stages
import tiny
import yaml
from test_report import Page

from corax.artifact import open_artifact, read_manifest

pytestmark = pytest.mark.workflow

CONFIG = {
    "models": {"tiny": {"source": "local", "path": "tiny-model"}},
    "datasets": {
        "quantum": {
            "task": "quantum",
            "shards": 2,
            "generate": {"topologies": 200, "samples": 48, "validation_samples": 4, "test_samples": 6},
        }
    },
    "runs": {
        "demo": {
            "model": "tiny",
            "dataset": "quantum",
            "plan": {"max_length": 2048, "packs_per_step": 1, "max_steps": 6, "validation_samples": 4},
            "lora": {"r": 4},
            "train": {"learning_rate": 0.01, "eval_steps": 3, "save_steps": 2, "threads": 1},
            "sample": {"held_out_prompts": 2, "max_new_tokens": 20},
        }
    },
}
RUN_STAGES = ["plan", "train", "merge", "sample", "evaluate", "report"]
ARTIFACTS = {
    "results/models/tiny": "download_model",
    "results/datasets/quantum/raw/000": "generate",
    "results/datasets/quantum/text/001": "detokenize",
    "results/datasets/quantum/tokens/tiny/000": "pretokenize",
    "results/runs/demo/plan": "plan",
    "results/runs/demo/adapter": "train",
    "results/runs/demo/merged": "merge",
    "results/runs/demo/samples.parquet": "sample",
    "results/runs/demo/evaluation.json": "evaluate",
    "results/report.html": "report",
}
DEPENDENTS = {
    "download_model": {"pretokenize", *RUN_STAGES},
    "generate": {"detokenize", "pretokenize", *RUN_STAGES},
    "detokenize": {"pretokenize", *RUN_STAGES},
    "pretokenize": set(RUN_STAGES),
    **{stage: set(RUN_STAGES[place:]) for place, stage in enumerate(RUN_STAGES)},
}


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the workflow in `folder`."""
    program = [sys.executable, "-m", "snakemake", "--snakefile", str(stages.REPOSITORY / "Snakefile")]
    options = ["--directory", str(folder), "--configfile", str(folder / "config.yaml"), "--cores", "2"]
    return subprocess.run(
        [*program, *options, *arguments], capture_output=True, text=True, cwd=folder, env=stages.environment()
    )


def write_config(folder: Path, **changes: object) -> None:
    """config.yaml with `section__key=value` changed in the run."""
    config = json.loads(json.dumps(CONFIG))
    for place, value in changes.items():
        section, key = place.split("__")
        config["runs"]["demo"].setdefault(section, {})[key] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def digests(folder: Path) -> dict[str, str]:
    """The content digest of every artifact."""
    paths = sorted((folder / "results").rglob("*manifest.json"))
    return {str(path.relative_to(folder)): read_manifest(path).digest for path in paths}


def planned(folder: Path) -> set[str]:
    """The rules that a dry run lists, without `all`."""
    result = snakemake(folder, "--dry-run")
    assert result.returncode == 0, result.stdout + result.stderr
    names = re.findall(r"^ *(?:local)?rule (\w+):$", result.stdout + result.stderr, re.MULTILINE)
    return set(names) - {"all"}


def remove(artifact: Path) -> None:
    """Delete an artifact as a person would: the folder, or the file."""
    if artifact.is_dir():
        shutil.rmtree(artifact)
    else:
        artifact.unlink()


@contextmanager
def kept_times(folder: Path) -> Iterator[None]:
    """Give everything in `folder` its modification time back afterwards."""
    times = {path: (path.stat().st_atime_ns, path.stat().st_mtime_ns) for path in folder.rglob("*")}
    yield
    for path, each in times.items():
        os.utime(path, ns=each)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the whole workflow ran once."""
    folder = tmp_path_factory.mktemp("workflow")
    tiny.model_folder(folder / "tiny-model", flavour="chatml")
    write_config(folder)
    result = snakemake(folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_every_artifact_is_there_and_verifies(finished: Path) -> None:
    for artifact in ARTIFACTS:
        open_artifact(finished / artifact)
    result = stages.run("verify", cwd=finished)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_second_run_does_nothing(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "results").rglob("*")}
    result = snakemake(finished)
    assert result.returncode == 0 and "Nothing to be done" in result.stdout + result.stderr
    assert before == {path: path.stat().st_mtime_ns for path in (finished / "results").rglob("*")}


@pytest.mark.parametrize(
    ("change", "rules"),
    [
        ({"lora__r": 8}, set(RUN_STAGES)),
        ({"train__learning_rate": 0.02}, set(RUN_STAGES) - {"plan"}),
        ({"sample__temperature": 0.9}, {"sample", "evaluate", "report"}),
        ({"evaluate__test_samples": 3}, {"evaluate", "report"}),
    ],
)
def test_a_changed_key_reruns_exactly_what_depends_on_it(
    finished: Path, change: dict[str, object], rules: set[str]
) -> None:
    write_config(finished, **change)
    try:
        assert planned(finished) == rules
    finally:
        write_config(finished)


def test_an_edited_module_reruns_exactly_its_stages() -> None:
    from corax import sources

    scripts = stages.SCRIPTS
    users = {
        stage
        for stage in RUN_STAGES
        if scripts / "corax" / "merge" / "weights.py" in sources.of(scripts / f"{stage}.py")
    }
    assert users == {"merge"}


def test_the_logged_command_gives_the_same_file(finished: Path) -> None:
    evaluation = finished / "results/runs/demo/evaluation.json"
    content = evaluation.read_bytes()
    first = (finished / "logs/evaluate/demo.log").read_text().splitlines()[0]
    assert first.startswith("$ python ")
    evaluation.unlink()
    command = [sys.executable, *shlex.split(first.removeprefix("$ python "))]
    result = subprocess.run(command, cwd=finished, capture_output=True, text=True, env=stages.environment())
    assert result.returncode == 0, result.stderr
    assert evaluation.read_bytes() == content


@pytest.mark.parametrize("artifact", ARTIFACTS)
def test_a_flipped_byte_is_found(finished: Path, artifact: str) -> None:
    manifest = open_artifact(finished / artifact)
    path = max(manifest.files(), key=lambda file: file.stat().st_size)
    content = path.read_bytes()
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    try:
        result = stages.run("verify", cwd=finished)
        assert result.returncode == 1
        assert str(path.relative_to(finished)) in result.stdout + result.stderr
    finally:
        path.write_bytes(content)
        os.utime(path, ns=times)


def test_deleted_artifacts_are_rebuilt_with_the_same_bytes(finished: Path) -> None:
    before, page = digests(finished), Page((finished / "results/report.html").read_text())
    for artifact in ARTIFACTS:
        remove(finished / artifact)
        manifest = f"{artifact}/manifest.json" if "." not in Path(artifact).name else artifact
        result = snakemake(finished, manifest)
        assert result.returncode == 0, f"{artifact}: {result.stdout + result.stderr}"
    result = snakemake(finished)
    assert result.returncode == 0, result.stdout + result.stderr
    after = digests(finished)
    # The report alone may differ, in what it says of when, where and how fast things ran.
    report = "results/report.manifest.json"
    assert {**before, report: ""} == {**after, report: ""}
    assert Page((finished / "results/report.html").read_text()).unmeasured == page.unmeasured


def test_the_report_alone_is_rebuilt_with_the_same_bytes(finished: Path) -> None:
    before = digests(finished)
    remove(finished / "results/report.html")
    result = snakemake(finished)
    assert result.returncode == 0, result.stdout + result.stderr
    assert digests(finished) == before


@pytest.mark.parametrize("artifact", ARTIFACTS)
def test_a_missing_artifact_reruns_it_and_what_depends_on_it(finished: Path, artifact: str) -> None:
    rule = ARTIFACTS[artifact]
    hidden = finished / "hidden"
    with kept_times(finished / "results"):
        (finished / artifact).rename(hidden)
        manifest = (finished / artifact).with_suffix(".manifest.json")
        content = manifest.read_bytes() if hidden.is_file() else b""
        try:
            assert planned(finished) == {rule, *DEPENDENTS[rule]}
        finally:
            hidden.rename(finished / artifact)
            if content:
                manifest.write_bytes(content)


def test_a_file_edited_in_a_local_folder_is_copied_again(finished: Path) -> None:
    """Writing into a file leaves the time of its folder as it was."""
    file = finished / "tiny-model" / "generation_config.json"
    content = file.read_bytes()
    with kept_times(finished / "tiny-model"):
        file.write_bytes(content + b"\n")
        try:
            assert planned(finished) == {"download_model", "pretokenize", *RUN_STAGES}
        finally:
            file.write_bytes(content)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_missing_in_an_artifact_is_noticed(finished: Path, name: str) -> None:
    merged = finished / "results/runs/demo/merged"
    kept = {path: path.read_bytes() for path in (merged / name, merged / "manifest.json")}
    with kept_times(finished / "results"):
        (merged / name).unlink()
        before = (merged / "manifest.json").stat().st_mtime_ns
        try:
            assert planned(finished) == {"merge", "sample", "evaluate", "report"}
            # A dry run leaves what would tell the loss.
            assert (merged / "manifest.json").read_bytes() == kept[merged / "manifest.json"]
            assert (merged / "manifest.json").stat().st_mtime_ns == before
        finally:
            for path, content in kept.items():
                path.write_bytes(content)


def test_a_plan_with_a_flipped_byte_is_made_again(finished: Path) -> None:
    """Snakemake itself reads it, for the job's memory and time."""
    plan = finished / "results/runs/demo/plan/plan.json"
    content = plan.read_bytes()
    with kept_times(finished / "results"):
        plan.write_bytes(b"[" + content[1:])
        try:
            assert planned(finished) == set(RUN_STAGES)
        finally:
            plan.write_bytes(content)


def test_what_a_running_job_writes_is_left_alone(finished: Path) -> None:
    """A dry run meanwhile; half a manifest is what it may see of an artifact that is being written."""
    # Not "nothing to be done": an earlier test may have made the evaluation anew, which is newer than the report.
    without = planned(finished)
    unfinished = finished / "results/runs/demo/.merged.host-1-ab.tmp"
    unfinished.mkdir()
    manifest = unfinished / "manifest.json"
    manifest.write_text('{"stage": "mer')
    before = manifest.stat().st_ino
    try:
        result = snakemake(finished, "--dry-run")
        assert result.returncode == 0 and "will be made again" not in result.stderr
        assert manifest.stat().st_ino == before
        assert planned(finished) == without
    finally:
        shutil.rmtree(unfinished)


def test_every_job_has_a_log_of_its_own(tmp_path: Path) -> None:
    """Names that are the same, once they are joined by dashes."""
    config = json.loads(json.dumps(CONFIG))
    tiny.model_folder(tmp_path / "tiny-model", flavour="chatml")
    for name in ("c", "b-c", "a-000"):
        config["models"][name] = config["models"]["tiny"]
    for name in ("a", "a-b"):
        config["datasets"][name] = config["datasets"]["quantum"]
    for dataset, model in (("a", "b-c"), ("a-b", "c"), ("a", "a-000")):
        config["runs"][f"{dataset}-{model}"] = {**config["runs"]["demo"], "model": model, "dataset": dataset}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    result = snakemake(tmp_path, "--dry-run")
    logs = re.findall(r"^ *log: (\S+)", result.stdout + result.stderr, re.MULTILINE)
    assert result.returncode == 0 and len(logs) > 30
    assert len(set(logs)) == len(logs)


def test_a_job_that_was_interrupted_is_run_again_without_an_option(finished: Path) -> None:
    """Snakemake's own mark of an output whose job did not end, as Ctrl-C leaves it."""
    name = base64.b64encode(b"results/runs/demo/merged/manifest.json").decode()
    mark = finished / ".snakemake" / "incomplete" / name
    mark.parent.mkdir(exist_ok=True)
    mark.touch()
    try:
        assert planned(finished) == {"merge", "sample", "evaluate", "report"}
    finally:
        mark.unlink()


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("lora", "rank", 8, "runs.demo.lora.rank: unknown key"),
        ("lora", "r", "many", "runs.demo.lora.r: "),
        ("plan", "max_length", 4, "runs.demo.plan.max_length: "),
    ],
)
def test_a_wrong_configuration_stops_before_any_job(
    finished: Path, section: str, key: str, value: object, message: str
) -> None:
    write_config(finished, **{f"{section}__{key}": value})
    try:
        result = snakemake(finished)
        assert result.returncode != 0
        errors = [line for line in (result.stdout + result.stderr).splitlines() if "error" in line.lower()]
        assert len(errors) == 1 and message in errors[0] and "config.yaml" in errors[0], errors
        assert "Traceback" not in result.stderr
    finally:
        write_config(finished)


@pytest.mark.parametrize("name", ["two words", "o'brien"])
def test_a_repository_that_no_job_could_name_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(stages.REPOSITORY)
    snakefile = tmp_path / name / "Snakefile"
    program = [sys.executable, "-m", "snakemake", "--snakefile", str(snakefile), "--dry-run"]
    result = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, env=stages.environment())
    assert result.returncode != 0 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith(f"error: {tmp_path / name}: ")


def test_a_tab_is_named_with_its_line(tmp_path: Path) -> None:
    """In the default configuration; in that of --configfile Snakemake's own error comes first, without a line."""
    (tmp_path / "config.yaml").write_text("models:\n  tiny:\n\tsource: local\n")
    program = [sys.executable, "-m", "snakemake", "--snakefile", str(stages.REPOSITORY / "Snakefile"), "--dry-run"]
    result = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, env=stages.environment())
    assert result.returncode != 0 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1] == (
        "error: config.yaml, line 3: found character '\\t' that cannot start any token"
    )
    check = stages.run("check", "--configfile", tmp_path / "config.yaml")
    assert check.returncode == 2 and "line 3: found character '\\t'" in check.stderr.splitlines()[-1]
