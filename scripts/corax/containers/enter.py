"""What the containers see of the host, and a shell in one of them."""

import os
import re
import shlex
from pathlib import Path

import yaml

from corax import config, vocabulary
from corax.config import Config
from corax.containers import names
from corax.errors import CoraxError
from corax.settings.download import LocalSource


def outside(settings: Config, repository: Path) -> list[str]:
    """The folders that jobs read outside the working folder: the repository, and those of the settings' local files."""
    sources = [*settings.models.values(), *(each.download for each in settings.datasets.values())]
    files = [Path(source.path) for source in sources if isinstance(source, LocalSource)]
    files += [vocabulary.path_of(each.detokenize.vocabulary) for each in settings.datasets.values()]
    files += [Path(file) for run in settings.runs.values() for file in run.harness.tasks]
    folders = {repository, *(path.resolve().parent for path in files)}
    here = Path.cwd()
    return sorted(str(each) for each in folders if each != here and not {here, *folders} & set(each.parents))


def shell(repository: Path, stage: str, configfile: Path, profile: Path) -> None:
    """Replace this process by a shell in the container of `stage`; raises CoraxError."""
    name = _image_of(repository, stage)
    image = repository / names.image(repository, name)
    if not image.is_file():
        raise CoraxError(f"{image}: missing; build it with: {names.command([name])}")
    settings = config.check(config.read(configfile), str(configfile))
    os.environ["CORAX_BIND"] = ",".join(outside(settings, repository))
    # As Snakemake starts a job: its options reach a shell as they are, and containers/bin/apptainer adds the others.
    start = shlex.join([str(repository / "containers/bin/apptainer"), "exec", "--home", str(Path.cwd())])
    inside = shlex.join([str(image), "bash", "-c", f"exec bash # scripts/{stage}.py"])
    os.execvp("bash", ["bash", "-c", f"{start} {_arguments(profile)} {inside}"])  # noqa: S606


def _image_of(repository: Path, stage: str) -> str:
    """The image that the stage's rule names."""
    rules = {path.stem: path for path in (repository / "rules").glob("*.smk") if path.stem != "common"}
    if stage not in rules:
        raise CoraxError(f"stage {stage!r}: no such stage, allowed: {', '.join(sorted(rules))}")
    return str(re.findall(r'IMAGES\["(\w+)"\]', rules[stage].read_text())[0])


def _arguments(profile: Path) -> str:
    """The profile's own options for Apptainer."""
    path = profile / "config.yaml"
    return str(yaml.safe_load(path.read_text()).get("apptainer-args", "")) if path.is_file() else ""
