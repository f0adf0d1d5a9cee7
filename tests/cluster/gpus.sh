#!/usr/bin/env bash
# The workflow once on a machine with several real GPUs, through `snakemake --profile slurm` and Apptainer with --nv.
#
#     tests/cluster/gpus.sh [OUTPUT]      on the GPU machine, as root, without a network
#
# Wants what benchmarks/carried.sh carries (packed with APPTAINER_DEB). The GPU machine has Ubuntu 24.04, Python 3.12 and
# torch with CUDA, which no image of ours could carry: its image binds the machine's /usr and /opt.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPOSITORY=$(cd "$HERE/../.." && pwd)
export ROOT=/opt/corax
USER_NAME=corax
USER_HOME=/home/$USER_NAME
FOLDER=$USER_HOME/run
LIBRARIES=/usr/lib/x86_64-linux-gnu

step() {
    printf '%s s: %s\n' "$SECONDS" "$*"
}

install_tools() {
    local carried=$ROOT/carried
    step "Slurm, munge and Apptainer"
    id "$USER_NAME" > /dev/null 2>&1 || useradd --create-home --shell /bin/bash "$USER_NAME"
    id munge > /dev/null 2>&1 || useradd --system --shell /usr/sbin/nologin munge
    grep -q "^$USER_NAME:" /etc/subuid || usermod --add-subuids 200000-265535 --add-subgids 200000-265535 "$USER_NAME"
    tar --extract --gzip --file "$carried/slurm.tar.gz" --directory /
    for daemon in slurmctld slurmd slurmstepd; do ln -sf "$daemon-wlm" "/usr/sbin/$daemon"; done
    mkdir -p "$ROOT/libraries"
    tar --extract --gzip --file "$carried/libraries.tar.gz" --directory "$ROOT/libraries"
    for library in "$ROOT"/libraries/*; do # the system's own come first
        [ ! -e "$LIBRARIES/$(basename "$library")" ] || rm "$library"
    done
    echo "$ROOT/libraries" > /etc/ld.so.conf.d/zz-corax.conf
    for package in "$carried"/libraries/*.deb; do # /lib is a link there, which must stay one
        dpkg-deb --fsys-tarfile "$package" | tar --extract --keep-directory-symlink --directory /
    done
    ldconfig
    DEBS="$carried/debs" "$HERE/install_apptainer.sh"
}

# Mount points and nothing else; the machine's /usr and /opt are bound (APPTAINER_BIND).
build_images() {
    local sandbox=$ROOT/sandbox image
    mkdir -p "$sandbox"/{dev,etc,home,opt,proc,root,run,sys,tmp,usr,var/tmp}
    for name in bin lib lib64 sbin; do ln -sfn "usr/$name" "$sandbox/$name"; done
    cp /etc/{passwd,group,ld.so.cache,nsswitch.conf} "$sandbox/etc/"
    mkdir -p "$sandbox/.singularity.d/env"
    cat > "$ROOT/machine.def" << RECIPE
Bootstrap: localimage
From: $sandbox

%environment
    export PATH=$ROOT/venv/bin:/usr/bin:/bin PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1
RECIPE
    for name in data train; do
        image=$(cd "$REPOSITORY/scripts" && "$ROOT/venv/bin/python" -c "
from pathlib import Path
from corax.containers import names
print(names.image(Path('$USER_HOME/corax'), '$name'))")
        [ -e "$ROOT/machine.sif" ] || apptainer --quiet build "$ROOT/machine.sif" "$ROOT/machine.def"
        cp "$ROOT/machine.sif" "$USER_HOME/corax/$image"
    done
}

configure() {
    local profile=$USER_HOME/.config/snakemake/slurm
    mkdir -p "$profile" "$FOLDER"
    "$ROOT/venv/bin/python" - << PYTHON
import yaml
path = "$USER_HOME/corax/profiles/slurm/config.yaml"
content = yaml.safe_load(open(path))
content["default-resources"] = {"slurm_partition": "'gpu'", "cpus_per_gpu": 8}
content["corax-slurm-init-seconds-before-status-checks"] = 1
content["latency-wait"] = 5
yaml.safe_dump(content, open("$profile/config.yaml", "w"))
PYTHON
    echo "$USER_HOME/corax/profiles/slurm/executor" > "$(dirname "$ROOT"/venv/lib/python*/site-packages/machine.pth)/slurm.pth"
    write_config "$1"
}

# Three runs that differ in nothing but their names and, for the last, in the number of its GPUs.
write_config() {
    local devices
    cat > "$FOLDER/config.yaml" << CONFIG
models:
  smollm2-135m: {source: local, path: $ROOT/model, license: Apache-2.0}
datasets:
  quantum-short:
    task: quantum
    shards: 1
    generate: {topologies: 1000, samples: 2000, validation_samples: 32, test_samples: 32}
runs:
CONFIG
    for name in whole killed fewer; do
        devices=$GPU_COUNT
        [ "$name" != fewer ] || devices=$1
        cat >> "$FOLDER/config.yaml" << CONFIG
  $name:
    model: smollm2-135m
    dataset: quantum-short
    plan: {max_length: 2048, packs_per_step: 8, max_steps: 40, validation_samples: 32, device: h100-80gb, devices: $devices}
    lora: {r: 16}
    train: {learning_rate: 1.0e-3, eval_steps: 20, save_steps: 5}
    sample: {targets: false, held_out_prompts: 8, max_new_tokens: 200}
    evaluate: {test_samples: 16}
CONFIG
    done
    chown -R "$USER_NAME:" "$USER_HOME"
}

# The driver as the ordinary user: workflow NAME TARGET...; its output is in $OUTPUT/driver-NAME.log.
workflow() {
    local name=$1
    shift
    runuser -u "$USER_NAME" -- env HOME="$USER_HOME" PATH="$ROOT/venv/bin:$PATH" APPTAINER_BIND=/usr,/opt \
        NCCL_SOCKET_IFNAME=lo bash -c "cd $FOLDER && snakemake --snakefile $USER_HOME/corax/Snakefile \
        --configfile config.yaml --profile slurm $*" > "$OUTPUT/driver-$name.log" 2>&1
}

adapter() {
    echo "results/runs/$1/adapter/manifest.json"
}

# Until a run has a checkpoint, or two minutes are over.
wait_for_checkpoint() {
    for _ in $(seq 240); do
        ! compgen -G "$FOLDER/work/$1/*/step-*" > /dev/null || return 0
        sleep 0.5
    done
    echo "error: no checkpoint of $1" >&2
    return 1
}

same_adapter() {
    (cd "$FOLDER/results/runs" && sha256sum {whole,"$1"}/adapter/adapter_model.safetensors)
    cmp "$FOLDER/results/runs/"{whole,"$1"}/adapter/adapter_model.safetensors
}

# One rank dies of kill -9: the job fails, is submitted again by itself, and ends with the same bytes.
kill_and_resume() {
    local driver
    workflow killed "$(adapter killed)" &
    driver=$!
    wait_for_checkpoint killed
    kill -9 "$(pgrep --full 'train.py .*--work work/killed' | tail -1)"
    wait "$driver"
    same_adapter killed
}

# The driver and its job end in the middle; half as many GPUs go on.
continue_on_fewer() {
    workflow fewer-before "$(adapter fewer)" &
    wait_for_checkpoint fewer
    pkill -9 --uid "$USER_NAME" --full snakemake
    scancel --user="$USER_NAME"
    while [ -n "$(squeue --noheader)" ]; do sleep 0.5; done
    write_config $((GPU_COUNT / 2))
    workflow fewer-after "$(adapter fewer)" && grep "going on after step" "$FOLDER"/logs/train/fewer.log
}

run() {
    local status=0
    OUTPUT=${1:-$ROOT/output}
    mkdir -p "$OUTPUT"
    step "packages and model"
    "$REPOSITORY/benchmarks/carried.sh" install
    install_tools
    mkdir -p "$USER_HOME/corax"
    cp -r "$REPOSITORY"/{Snakefile,config.yaml,containers,envs,profiles,report,rules,schemas,scripts} "$USER_HOME/corax/"
    step "images and Slurm"
    build_images
    GPU_COUNT=$(nvidia-smi --list-gpus | wc -l)
    GPUS=$(seq --format '/dev/nvidia%g' --separator ' ' 0 $((GPU_COUNT - 1))) "$HERE/slurm.sh" start
    configure "$GPU_COUNT"
    for part in "workflow whole results/runs/whole/evaluation.json" kill_and_resume continue_on_fewer; do
        step "$part"
        $part || { status=$?; echo "failed: $part"; }
    done
    step "ended with $status"
    cp -r "$FOLDER/logs" "$OUTPUT/" || true
    for name in whole killed fewer; do
        cp "$FOLDER/results/runs/$name/adapter/manifest.json" "$OUTPUT/$name.json" || true
        cp "$FOLDER/results/runs/$name/adapter/metrics.jsonl" "$OUTPUT/$name.jsonl" || true
    done
    cp "$FOLDER"/results/runs/whole/{plan/plan.json,evaluation.json} "$OUTPUT/" || true
    find "$FOLDER/logs" -name "*.log" -exec tail -n 5 {} +
    (cd "$FOLDER" && "$ROOT/venv/bin/python" "$USER_HOME/corax/scripts/verify.py") || status=$?
    return "$status"
}

run "${1:-}"
