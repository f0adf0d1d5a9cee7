#!/usr/bin/env bash
# Remake the hash-locked lists from the .in files: envs/lock.sh [--upgrade]
#
# local.txt is resolved first; the other lists are the parts of it that they need, at the same versions.
set -euo pipefail
cd "$(dirname "$0")"

compile() {
    # The CPU build resolves without the CUDA libraries, which have a list of their own.
    [ ! -e "$1.txt" ] || sed -i 's/^torch==2\.13\.0 /torch==2.13.0+cpu /' "$1.txt"
    pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-header \
        --no-emit-index-url --no-emit-find-links --no-emit-trusted-host "${@:2}" --output-file="$1.txt" "$1.in"
    # One entry for the CPU and the CUDA builds (Python 3.11 and 3.12, x86-64): their version differs by a suffix only.
    sed -i 's/^torch==2\.13\.0+cpu/torch==2.13.0/' "$1.txt"
    python - "$1.txt" <<'PYTHON'
import sys
from pathlib import Path

builds = (
    "60fcdcb2f3876e21146cb4524ef06397d727ca9ad5f020818547e25075fe3cb7",  # CUDA, Python 3.11
    "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",  # CPU, Python 3.11
    "796633c4cdf0fe2cdced72d8f88f22e73dbcfce83132763162f6d4bff13b820b",  # CUDA, Python 3.12
)
path = Path(sys.argv[1])
head, found, tail = path.read_text().partition("torch==2.13.0 \\\n")
if found:
    tail = tail[tail.index("    # via") :]
    path.write_text(head + found + " \\\n".join(f"    --hash=sha256:{build}" for build in builds) + "\n" + tail)
PYTHON
}

compile local "$@"
for name in workflow data train; do
    cp local.txt "$name.txt"
    compile "$name"
done
compile cuda
compile gguf --constraint local.txt
compile llama-cpp-build --constraint local.txt

# What lm-evaluation-harness adds to train.txt. Three packages that it asks for have no wheel, and nothing that is used
# here imports them: they are for its cache of answers and for some of the tasks that come with it.
compile harness --constraint local.txt
python - <<'PYTHON'
import re
from pathlib import Path

LEFT_OUT = {"rouge-score", "sqlitedict", "word2number"}


def entries(path):
    """The entries of a list by name."""
    found = re.findall(r"^(([\w.-]+)==.*\n(?:[ \t].*\n)*)", path.read_text(), re.MULTILINE)
    return {name: text for text, name in found}


harness = entries(Path("harness.txt"))
added = [text for name, text in harness.items() if name not in LEFT_OUT | set(entries(Path("train.txt")))]
Path("harness.txt").write_text("".join(added))
PYTHON
