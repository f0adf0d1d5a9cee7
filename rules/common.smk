# The checked configuration, and the few functions that rules share.

import atexit
import json
import os
import re
import shlex
import signal
import sys
from pathlib import Path

REPOSITORY = Path(workflow.basedir)
ROOT = "" if REPOSITORY == Path.cwd() else f"{REPOSITORY}/"
if not re.fullmatch(r"[\w@%+=:,./~-]*", ROOT):  # jobs name its files on their command lines
    sys.exit(f"error: {REPOSITORY}: a shell would split this path; run Snakemake in this folder, or move it")

sys.path.insert(0, f"{REPOSITORY}/scripts")

from snakemake.settings.types import DeploymentMethod

from corax import artifact, cli, sources, vocabulary
from corax import config as corax_config
from corax.containers import enter, names
from corax.download import local
from corax.errors import CoraxError
from corax.harness import task_file
from corax.merge import memory as merge_memory
from corax.plan import devices
from corax.settings.download import command_line
from corax.settings.plan import TRAIN_KEYS
from corax.settings.train import TrainSettings

# containers/bin has the `apptainer` that Snakemake finds; without a container `python` is the one that runs Snakemake.
# Threads that wait without spinning cost little, and far less where other processes share the cores.
programs = [f"{REPOSITORY}/containers/bin", str(Path(sys.executable).parent), os.environ.get("PATH", "")]
os.environ.update(OMP_WAIT_POLICY="PASSIVE", PATH=os.pathsep.join(programs))


def or_exit(function, *arguments):
    """What the function returns; a user's mistake ends Snakemake with its one line."""
    try:
        return function(*arguments)
    except CoraxError as error:
        sys.exit(f"error: {error}")


# Before Snakemake reads the default: its own error names neither file nor line.
for path in workflow.configfiles or ["config.yaml"]:
    or_exit(corax_config.read, Path(path))


if not workflow.configfiles:

    configfile: "config.yaml"


CONFIG = or_exit(corax_config.check, config, ", ".join(str(path) for path in workflow.configfiles))


# In a Slurm job: the signal ahead of its time limit is for the stage alone (Snakemake would die of it), and the exit
# code of the stage tells the executor how the job ended: docs/slurm.md.
slurm_job = os.environ.get("SLURM_JOB_ID")
if slurm_job and not workflow.is_main_process:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    exit_codes = f".snakemake/corax-slurm/{slurm_job}.exit"
    shell.prefix(f"trap 'echo $? >> {exit_codes}' EXIT; trap '' USR1; set -euo pipefail; ")


def one_of(names):
    """A wildcard's pattern for these names; nothing matches it if there are none."""
    return "|".join(map(re.escape, names)) or "(?!)"


wildcard_constraints:
    model=one_of(CONFIG.models),
    dataset=one_of(CONFIG.datasets),
    run=one_of(CONFIG.runs),
    shard="[0-9]+",


# Runs that lm-evaluation-harness evaluates too.
HARNESSED = [name for name, each in CONFIG.runs.items() if each.harness.tasks]
# Runs whose merged model becomes a GGUF file too.
EXPORTED = [name for name, each in CONFIG.runs.items() if each.gguf.outtype]


# What a job's container sees of the host besides its working folder: docs/containers.md.
os.environ.update(CORAX_BIND=",".join(enter.outside(CONFIG, REPOSITORY)))
IMAGES = {name: f"{ROOT}{names.image(REPOSITORY, name)}" for name in names.LOCKS}


def missing_images():
    """The images that are not there, if jobs run in containers."""
    if DeploymentMethod.APPTAINER not in workflow.deployment_settings.deployment_method:
        return []
    return [IMAGES[name] for name in names.wanted(CONFIG.optional_images) if not Path(IMAGES[name]).is_file()]


# Before the first job; a dry run may say what a changed lock will make run again.
onstart:
    if missing_images():
        build = names.command(CONFIG.optional_images)
        sys.exit(f"error: {', '.join(missing_images())}: missing; build with: {build}")
    FORGOTTEN.clear()


def dataset(wildcards):
    """The dataset's settings."""
    return CONFIG.datasets[wildcards.dataset]


def run(wildcards):
    """The run's settings."""
    return CONFIG.runs[wildcards.run]


def repository_file(path):
    """A file of this repository, also where Snakemake runs in another folder."""
    return f"{ROOT}{path}"


def script(stage):
    """The program of a stage."""
    return repository_file(f"scripts/{stage}.py")


def modules(stage):
    """The modules that the program consists of: editing one of them reruns the stage."""
    root = REPOSITORY.resolve()
    files = [str(path.relative_to(root)) for path in sources.of(root / "scripts" / f"{stage}.py")]
    return [repository_file(file) for file in files if file != f"scripts/{stage}.py"]


def options(**sections):
    """Settings as quoted command-line options, `--section.key value`."""
    return shlex.join(token for name, values in sections.items() for token in cli.options(values, name))


def local_model(wildcards):
    """The files of a local folder are inputs: an edited one is copied again. The folder's own time would not show it."""
    source = CONFIG.models[wildcards.model]
    return local.inputs(Path(source.path), "model") if source.source == "local" else []


def local_data(wildcards):
    """Local files are inputs: an edited one is copied again."""
    source = dataset(wildcards).download
    if source.source != "local":
        return []
    return local.inputs(Path(source.path.replace("{shard}", str(int(wildcards.shard)))), "data")


def task_files(wildcards):
    """The task files of lm-evaluation-harness and their data: an edited one is run again."""
    return [str(file) for task in task_file.read_all(run(wildcards).harness.tasks) for file in task.files]


def launcher(wildcards):
    """What starts the ranks: nothing for one."""
    devices = run(wildcards).plan.devices
    return "" if devices == 1 else f"{script('launch')} --ranks {devices}"


def gpus(wildcards):
    """The GPUs that training takes."""
    plan = run(wildcards).plan
    return 0 if plan.device == "cpu" else plan.devices


def gpu(wildcards):
    """The GPU that a stage with one process takes, if there are any."""
    return min(1, gpus(wildcards))


def more_on_retry(mem_mb):
    """Memory that grows with every attempt: the first may have run out of it."""
    return lambda wildcards, attempt: attempt * mem_mb


def merging_mb(wildcards, input, attempt):
    """The memory of the merge job in MB, by the model's files; more on a retry, <TBD> as long as they are missing."""
    Path(input.model).stat()
    weights = merge_memory.weight_sizes(Path(input.model).parent)
    gpu = devices.GPUS.get(run(wildcards).plan.device)
    return attempt * (merge_memory.main_memory(weights, gpu.memory if gpu else 0) // 10**6)


def planned(plan):
    """What the plan asks Slurm for; Snakemake says <TBD> as long as its file is missing."""
    Path(plan).stat()
    return json.loads(Path(plan).with_name("plan.json").read_text())["slurm"]


def planned_mb(wildcards, input, attempt):
    """The memory of the training job in MB, more on a retry."""
    return attempt * 1000 * planned(input.plan)["mem_gb"]


def planned_minutes(wildcards, input):
    """The time of the training job; what takes longer goes on in the next job."""
    hours, minutes, _ = map(int, planned(input.plan)["time"].split(":"))
    return 60 * hours + minutes


def shards(dataset_name, kind):
    """The manifests of all shards of a dataset; `kind` is raw, text or tokens/<model>."""
    numbers = range(CONFIG.datasets[dataset_name].shards)
    return [f"results/datasets/{dataset_name}/{kind}/{number:03}/manifest.json" for number in numbers]


def model_of_run(wildcards):
    """The manifest of the run's base model."""
    return f"results/models/{run(wildcards).model}/manifest.json"


def text_of_run(wildcards):
    """The manifests of the run's text shards."""
    return shards(run(wildcards).dataset, "text")


def tokens_of_run(wildcards):
    """The manifests of the run's token shards."""
    return shards(run(wildcards).dataset, f"tokens/{run(wildcards).model}")


def artifacts():
    """The manifests of everything that the configured runs need and make: a missing one is made again."""
    found = set()
    for name, each in CONFIG.runs.items():
        found.add(f"results/models/{each.model}/manifest.json")
        for kind in ("raw", "text", f"tokens/{each.model}"):
            found.update(shards(each.dataset, kind))
        found.update(f"results/runs/{name}/{folder}/manifest.json" for folder in ("plan", "adapter", "merged"))
        found.update(f"results/runs/{name}/{file}.manifest.json" for file in ("samples", "evaluation"))
    found.update(f"results/runs/{name}/harness.manifest.json" for name in HARNESSED)
    found.update(f"results/runs/{name}/gguf/manifest.json" for name in EXPORTED)
    return sorted(found)


def folders(manifests):
    """The folders of several artifacts, for a command line."""
    return [str(Path(manifest).parent) for manifest in manifests]


FORGOTTEN = {}


def manifests(root):
    """The manifests below a folder, without those of hidden folders: jobs that run are writing or removing these."""
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(folder, name) for name in files if name.endswith("manifest.json"))


def forget_incomplete(root="results"):
    """Remove manifests that are damaged or whose files are gone or cut: Snakemake makes those artifacts again."""
    for path in manifests(root):
        try:
            manifest = artifact.read_manifest(path)
            is_plan = manifest.content["stage"] == "plan"  # small, and Snakemake itself reads it: `planned`
            problem = artifact.damage(path.parent) if is_plan else artifact.missing_file(manifest)
        except CoraxError as error:
            problem = str(error)
        if problem and path.is_file():
            print(f"{problem}; it will be made again", file=sys.stderr)
            FORGOTTEN[path] = path.read_bytes(), path.stat().st_mtime_ns
            path.unlink()


def remember():
    """Put the manifests back that no run made again: a dry run changes nothing."""
    for path, (content, time) in FORGOTTEN.items():
        if path.parent.is_dir() and not path.exists():
            path.write_bytes(content)
            os.utime(path, ns=(time, time))


# Once, in the process that the user started; not in the jobs, which run while artifacts are being replaced.
if workflow.is_main_process:
    atexit.register(remember)
    forget_incomplete()
