"""The real images: built as an ordinary user, the whole workflow inside them, nothing of a killed build, no network."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
from account import Account, copy_project
from test_report import Page
from test_workflow import DEPENDENTS, digests, write_config

from corax.containers import names

pytestmark = pytest.mark.cluster

IMAGE_OF = {
    "data": {"generate", "detokenize", "pretokenize", "plan", "report"},
    "train": {"download_model", "train", "merge", "sample", "evaluate"},
}
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"
MEET = """
import torch.distributed as dist, torch
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
print(f"ranks {int(total)}", flush=True)
"""


def snakemake(account: Account, project: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the project's workflow in `folder`."""
    program = [sys.executable, "-m", "snakemake", "--snakefile", str(project / "Snakefile")]
    options = ["--directory", str(folder), "--configfile", str(folder / "config.yaml"), "--cores", "2"]
    return account.run(*program, *options, *arguments, cwd=folder)


IN_CONTAINERS = ("--software-deployment-method", "apptainer")


def prepare(account: Account, folder: Path) -> None:
    """A configuration with a tiny model."""
    folder.mkdir()
    tiny.model_folder(folder / "tiny-model", flavour="chatml")
    write_config(folder)
    account.own(folder)


@pytest.fixture(scope="module")
def plain(account: Account, project: Path) -> Path:
    """A folder in which the workflow ran without containers."""
    folder = project / "plain"
    prepare(account, folder)
    result = snakemake(account, project, folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture(scope="module")
def contained(account: Account, project: Path, images: dict[str, Path]) -> Path:
    """A folder in which the workflow ran with every job in its container."""
    folder = project / "contained"
    prepare(account, folder)
    result = snakemake(account, project, folder, *IN_CONTAINERS)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def planned(account: Account, project: Path, folder: Path) -> set[str]:
    """The rules that a dry run lists, without `all`."""
    result = snakemake(account, project, folder, *IN_CONTAINERS, "--dry-run")
    assert result.returncode == 0, result.stdout + result.stderr
    return set(re.findall(r"^ *(?:local)?rule (\w+):$", result.stdout + result.stderr, re.MULTILINE)) - {"all"}


def test_artifacts_equal_those_of_a_run_without_containers(plain: Path, contained: Path) -> None:
    report = "results/report.manifest.json"  # says when, where and how fast things ran
    assert {**digests(plain), report: ""} == {**digests(contained), report: ""}
    first, second = (Page((folder / "results/report.html").read_text()) for folder in (plain, contained))
    assert first.unmeasured == second.unmeasured


def test_manifests_name_the_image_and_its_digest(project: Path, images: dict[str, Path], contained: Path) -> None:
    for stage, path in {"data": "plan", "train": "adapter"}.items():
        manifest = json.loads((contained / f"results/runs/demo/{path}/manifest.json").read_text())
        beside = json.loads(images[stage].with_suffix(".json").read_text())
        assert manifest["run"]["container"] == {key: beside[key] for key in ("image", "base", "content")}
        assert manifest["run"]["container"]["image"] == images[stage].name


def test_a_second_run_does_nothing(account: Account, project: Path, contained: Path) -> None:
    result = snakemake(account, project, contained, *IN_CONTAINERS)
    assert result.returncode == 0 and "Nothing to be done" in result.stdout + result.stderr


def test_a_shell_opens_in_the_container_of_a_stage(account: Account, project: Path, contained: Path) -> None:
    program = f"{sys.executable} {project}/scripts/images.py shell merge"
    typed = "pwd; cat /opt/corax/image.json; ls results; grep -c : /proc/net/dev"
    result = account.run("bash", "-c", f"echo '{typed}' | {program}", cwd=contained)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == str(contained) and "report.html" in lines and lines[-1] == "1"
    assert '"image": "train-' in result.stdout


@contextmanager
def changed(path: Path) -> Iterator[None]:
    """One byte of a file is another one meanwhile."""
    content, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_bytes(content.replace(b"# via", b"# viA", 1))
    try:
        assert path.read_bytes() != content
        yield
    finally:
        path.write_bytes(content)
        os.utime(path, ns=times)


@pytest.mark.parametrize("name", names.wanted())
def test_a_changed_byte_of_a_lock_reruns_exactly_its_rules(
    account: Account, project: Path, contained: Path, name: str
) -> None:
    assert planned(account, project, contained) == set()
    expected = IMAGE_OF[name].union(*(DEPENDENTS[rule] for rule in IMAGE_OF[name]))
    with changed(project / "envs" / names.LOCKS[name][0]):
        assert planned(account, project, contained) == expected
        result = snakemake(account, project, contained, *IN_CONTAINERS)
        lines = [line for line in (result.stdout + result.stderr).splitlines() if "error" in line.lower()]
        assert result.returncode != 0 and "Traceback" not in result.stderr
        assert len(lines) == 1 and "make images" in lines[0] and f"{name}-" in lines[0], result.stderr


@pytest.mark.parametrize("stage", ["generate", "evaluate"])
def test_the_logged_command_pasted_gives_the_same_bytes(account: Account, contained: Path, stage: str) -> None:
    # After the tests that plan nothing to be done: what it writes is newer than what depends on it.
    log, output = {
        "generate": ("generate/quantum/000.log", "results/datasets/quantum/raw/000/train.h5"),
        "evaluate": ("evaluate/demo.log", "results/runs/demo/evaluation.json"),
    }[stage]
    first = (contained / "logs" / log).read_text().splitlines()[0]
    assert first.startswith("$ apptainer exec --containall ") and f" python {contained.parent}/scripts/{stage}" in first
    content = (contained / output).read_bytes()
    (contained / output).unlink()
    result = account.run("bash", "-c", first.removeprefix("$ "), cwd=contained)
    assert result.returncode == 0, result.stderr
    assert (contained / output).read_bytes() == content


def in_container(
    account: Account, folder: Path, image: Path, stage: str, command: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a container as Snakemake starts a job of `stage`."""
    program = image.parent / "bin/apptainer"
    return account.run(
        program,
        "exec",
        "--home",
        folder,
        image,
        "bash",
        "-c",
        f"{command} # scripts/{stage}.py",
        cwd=folder,
        **environment,
    )


@pytest.fixture
def listener() -> Iterator[int]:
    """The port of a server on this machine that accepts connections."""
    with socket.create_server(("127.0.0.1", 0), backlog=8) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("stage", ["train", "merge", "sample", "evaluate", "download"])
def test_only_download_reaches_the_network(
    account: Account, folder: Path, images: dict[str, Path], listener: int, stage: str
) -> None:
    connect = f"python -c '{CONNECT}' 127.0.0.1 {listener}"
    result = in_container(account, folder, images["train"], stage, connect)
    if stage == "download":
        assert result.returncode == 0, result.stderr
        return
    assert "ConnectionRefusedError" in result.stderr, result.stderr
    outside = in_container(account, folder, images["train"], stage, f"python -c '{CONNECT}' 192.0.2.1 80")
    assert "Network is unreachable" in outside.stderr, outside.stderr
    assert in_container(account, folder, images["train"], stage, "cat /proc/net/dev").stdout.count(":") == 1


def test_ranks_meet_without_a_network(account: Account, project: Path, folder: Path, images: dict[str, Path]) -> None:
    (folder / "meet.py").write_text(MEET)
    account.own(folder)
    command = f"python {project}/scripts/launch.py --ranks 2 meet.py"
    result = in_container(account, folder, images["train"], "train", command, CORAX_BIND=str(project))
    assert result.returncode == 0 and result.stdout.split("\n").count("ranks 2") == 2, result.stdout + result.stderr


def test_a_job_sees_nothing_of_the_home_and_the_environment(
    account: Account, folder: Path, images: dict[str, Path]
) -> None:
    secret = account.home / ".corax-test"
    secret.touch()
    account.own(secret)
    try:
        command = f"env; ls -a {account.home} $HOME; echo $HF_HUB_OFFLINE; touch made; python -m site | grep ENABLE"
        result = in_container(account, folder, images["train"], "train", command, **{"HF_TOKEN": "s3cret", "FOO": "1"})
    finally:
        secret.unlink()
    assert "s3cret" not in result.stdout and "FOO=" not in result.stdout and secret.name not in result.stdout
    assert "\n1\n" in result.stdout and "ENABLE_USER_SITE: False" in result.stdout
    assert (folder / "made").is_file()


def check(account: Account, project: Path, image: Path) -> dict[str, Any]:
    """What `inspection.check` says of an image to the ordinary user."""
    code = "import json, sys; from pathlib import Path; from corax.containers import inspection\n"
    code += "print(json.dumps(inspection.check(Path(sys.argv[1]))))"
    result = account.run(sys.executable, "-c", code, image, cwd=project, PYTHONPATH=str(project / "scripts"))
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout))


@pytest.mark.parametrize("name", names.wanted())
def test_labels_and_digest_of_an_image(account: Account, project: Path, images: dict[str, Path], name: str) -> None:
    described = check(account, project, images[name])
    beside = json.loads(images[name].with_suffix(".json").read_text())
    assert described == {key: value for key, value in beside.items() if key not in ("sha256", "size")}
    assert described["labels"]["corax.recipe"] == names.recipe_digest(project, name)


@pytest.fixture(scope="module")
def second(account: Account, project: Path, images: dict[str, Path]) -> Path:
    """The project once more, without images, in a folder of another name."""
    folder = project / "second"
    folder.mkdir()
    copy_project(folder)
    account.own(folder)
    return folder


BUILD_DATA = """
import sys
from pathlib import Path
sys.path.insert(0, "scripts")
from corax.containers import build
with build.workspace(Path.cwd()) as space:
    build.build(Path.cwd(), "data", build.debian(Path.cwd(), space / "base"), "cpu", space)
"""


def test_a_second_build_has_the_same_content(account: Account, second: Path, images: dict[str, Path]) -> None:
    result = account.run(sys.executable, "-c", BUILD_DATA, cwd=second)
    assert result.returncode == 0, result.stderr
    image = second / names.image(second, "data")
    first, again = (json.loads(path.with_suffix(".json").read_text()) for path in (images["data"], image))
    if first["base"] != again["base"]:
        pytest.skip("the kept images are of another day, with another Debian")
    assert first["content"] == again["content"]


@pytest.mark.parametrize("moment", [r"\.sif: build", r"\.sif: check"])
def test_a_killed_build_leaves_no_image(
    account: Account, second: Path, images: dict[str, Path], folder: Path, moment: str
) -> None:
    image = second / names.image(second, "data")
    for path in (image, image.with_suffix(".json")):
        path.unlink(missing_ok=True)
    code = BUILD_DATA.replace(
        'build.debian(Path.cwd(), space / "base")', f'build.Base("localimage", "{images["data"]}", "x")'
    )
    code = f"import logging, sys; logging.basicConfig(level=20, format='%(message)s', stream=sys.stdout)\n{code}"
    command, environment = account.start(sys.executable, "-u", "-c", code)
    process = subprocess.Popen(
        command, cwd=second, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    next(line for line in process.stdout if re.search(moment, line))
    time.sleep(2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not image.exists()
    result = account.run(sys.executable, "-c", code, cwd=second)
    assert result.returncode == 0, result.stdout + result.stderr
    assert image.is_file() and not list(image.parent.glob(".*.tmp"))
    assert check(account, second, image)["image"] == image.name
