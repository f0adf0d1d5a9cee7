"""What the preflight says on a machine without a cluster; on one with Slurm see tests/cluster."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import stages
import yaml
from hub_server import REPOSITORY as HUB_REPOSITORY
from hub_server import REVISION, HubServer

from corax import config
from corax.preflight import hub, profile, slurm, storage

TOKEN = "hf_secret-token"  # noqa: S105
CONFIG: dict[str, Any] = {
    "models": {"local": {"source": "local", "path": "model"}},
    "datasets": {"data": {"generate": {}}},
    "runs": {"run": {"model": "local", "dataset": "data"}},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, with a configuration."""
    (tmp_path / "model").mkdir()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def test_each_missing_thing_is_one_line(folder: Path) -> None:
    (folder / "profile").mkdir()
    content = {"executor": "no-such", "software-deployment-method": "apptainer"}
    (folder / "profile" / "config.yaml").write_text(yaml.safe_dump(content))
    programs = folder / "bin"  # neither apptainer nor sbatch
    programs.mkdir()
    environment = {"PATH": str(programs), "TMPDIR": str(folder / "absent"), "APPTAINER_BIND": "/absent/data:/data"}
    command = stages.command("check", "--profile", "profile")
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not line.startswith("$ ")]
    for found in (
        "executor no-such",
        f"{folder / 'absent'}: cannot be written",
        "apptainer: not found",
        "/absent/data",
    ):
        assert sum(found in line for line in lines) == 1, (found, lines)
    assert "error: sbatch: not found; run this on a login node of the cluster" in lines
    assert all(line.startswith("error: ") for line in lines)


def test_a_wrong_configuration_is_one_line(folder: Path) -> None:
    (folder / "config.yaml").write_text("models: {}\n")
    done = stages.run("check", "--profile", stages.REPOSITORY / "profiles" / "slurm")
    assert done.returncode == 2
    assert "config.yaml: " in done.stderr and "Traceback" not in done.stderr


def test_a_preset_and_a_file_of_the_sites_own(folder: Path) -> None:
    (folder / "mine.yaml").write_text("runs: {run: {lora: {r: 0}}}\n")
    done = stages.run("check", "--configfile", "config.yaml", "mine.yaml")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: config.yaml, mine.yaml: runs.run.lora.r: ")


def test_space_for_models(folder: Path) -> None:
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    with (folder / "model" / "model.safetensors").open("wb") as file:
        file.truncate(free)  # a hole: it takes no space
    problems = list(storage.problems(config.load(folder / "config.yaml"), folder))
    assert len(problems) == 1 and "GB free" in problems[0]


def test_the_shipped_profile_is_read() -> None:
    shipped = profile.read(stages.REPOSITORY / "profiles" / "slurm")
    wanted = shipped.resources("train")
    assert (wanted["slurm_partition"], wanted["gpu_model"], wanted["cpus_per_gpu"]) == ("gpu", "a100", 18)
    assert "gpu_model" not in shipped.resources("generate")
    assert shipped.uses_containers()


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("24:00:00", 1440), ("1-00:00:00", 1440), ("30:00", 30), ("45", 0.75), ("infinite", float("inf"))],
)
def test_time_limits(text: str, minutes: float) -> None:
    assert slurm.minutes(text) == minutes


@pytest.mark.parametrize(("token", "advice"), [(None, "it needs a token in HF_TOKEN"), (TOKEN, "not accepted")])
def test_a_gated_model(folder: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, advice: str) -> None:
    source = {"source": "hub", "repository": HUB_REPOSITORY, "revision": REVISION}
    settings = config.check({**CONFIG, "models": {"local": source}})
    (folder / "hub").mkdir()
    (folder / "hub" / "config.json").write_text("{}")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with HubServer(folder / "hub", token="another", gated=True) as server:  # noqa: S106
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        problems = list(hub.problems(settings, folder))
    assert len(problems) == 1 and advice in problems[0] and TOKEN not in problems[0]


@pytest.mark.parametrize("is_given", [True, False])
def test_a_hub_model_that_may_be_had(folder: Path, monkeypatch: pytest.MonkeyPatch, is_given: bool) -> None:
    source = {"source": "hub", "repository": HUB_REPOSITORY, "revision": REVISION}
    settings = config.check({**CONFIG, "models": {"local": source}})
    (folder / "hub").mkdir()
    (folder / "hub" / "config.json").write_text("{}")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with HubServer(folder / "hub", token=TOKEN) as server:
        monkeypatch.setattr(hub, "HUB", "" if is_given else server.endpoint)
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint if is_given else "")
        assert list(hub.problems(settings, folder)) == []


def test_an_endpoint_that_is_no_address(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = {"source": "hub", "repository": HUB_REPOSITORY, "revision": REVISION}
    monkeypatch.setenv("HF_ENDPOINT", "mirror")
    (problem,) = hub.problems(config.check({**CONFIG, "models": {"local": source}}), folder)
    assert "models.local:" in problem and "cannot be reached" in problem


@pytest.mark.parametrize("code", [0, 2, 75])
def test_the_launcher_ends_as_its_ranks_do(tmp_path: Path, code: int) -> None:
    program = tmp_path / "rank.py"
    program.write_text(
        "import os, signal, sys\n"
        "assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == {signal.SIGTERM, signal.SIGUSR1}\n"
        f"sys.exit({code} if os.environ['RANK'] == '1' else 0)\n"
    )
    command = [sys.executable, str(stages.SCRIPTS / "launch.py"), "--ranks", "2", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, env=stages.environment())
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
