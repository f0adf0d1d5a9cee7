"""What the cluster tests share: Apptainer, an ordinary user, the project in a folder of that user, and its images.

`make test-cluster` installs nothing that is there already; from nothing the images take some minutes. They are kept
in CORAX_TEST_IMAGES (default /var/tmp/corax-test-images) under names that carry the digest of their recipe.
"""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from account import Account, copy_project

from corax.containers import names

USER = "corax"
KEPT_IMAGES = Path(os.environ.get("CORAX_TEST_IMAGES", "/var/tmp/corax-test-images"))  # noqa: S108
CLUSTER = Path(__file__).parent


@pytest.fixture(scope="session")
def account() -> Account:
    """An ordinary user, who can start Apptainer and this Python."""
    if os.getuid() != 0:
        return Account(pwd.getpwuid(os.getuid()).pw_name, Path.home())
    try:
        pwd.getpwnam(USER)
    except KeyError:
        subprocess.run(["useradd", "--create-home", "--shell", "/bin/bash", USER], check=True)
    subprocess.run([CLUSTER / "install_apptainer.sh"], check=True)
    python = Path(sys.executable)
    for folder in {*python.parents, *python.resolve().parents}:  # which may lie in root's home
        folder.chmod(folder.stat().st_mode | 0o001)
    return Account(USER, Path(pwd.getpwnam(USER).pw_dir))


@pytest.fixture
def folder(account: Account) -> Iterator[Path]:
    """An empty folder of the ordinary user."""
    with tempfile.TemporaryDirectory(prefix="corax-cluster-", dir="/var/tmp") as name:
        account.own(Path(name))
        yield Path(name)


@pytest.fixture(scope="session")
def project(account: Account) -> Iterator[Path]:
    """A copy of the project, without images, that belongs to the ordinary user."""
    with tempfile.TemporaryDirectory(prefix="corax-project-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        copy_project(Path(name))
        account.own(Path(name))
        yield Path(name)


@pytest.fixture(scope="session")
def images(account: Account, project: Path) -> dict[str, Path]:
    """Both images in the project: built by `make images`' program, or links to those of an earlier session."""
    found = {name: project / names.image(project, name) for name in names.wanted()}
    if not all((KEPT_IMAGES / image.name).is_file() for image in found.values()):
        options = ["--base", "debian", "--torch", "cpu"]
        result = account.run(sys.executable, "scripts/images.py", "build", *options, cwd=project)
        assert result.returncode == 0, result.stdout + result.stderr
        shutil.rmtree(KEPT_IMAGES, ignore_errors=True)
        KEPT_IMAGES.mkdir()
        for image in found.values():
            shutil.move(image.with_suffix(".json"), KEPT_IMAGES)
            shutil.move(image, KEPT_IMAGES)
    for image in found.values():
        for file in (image, image.with_suffix(".json")):
            if not file.exists():
                file.symlink_to(KEPT_IMAGES / file.name)
    return found
