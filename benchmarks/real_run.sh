#!/usr/bin/env bash
# A real run on a machine with GPUs and no network: a 135M model tuned, merged, sampled for 20 classes, evaluated.
#
#     benchmarks/real_run.sh [OUTPUT]      CONFIG=a YAML file
#
# Wants what benchmarks/carried.sh carries, and installs it if that was not done. OUTPUT gets the report, evaluation,
# samples, metrics, plan, all manifests and logs; weights and data stay.
set -euo pipefail

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export ROOT=${ROOT:-/opt/corax}
output=${1:-$ROOT/output}
into=$ROOT/run
status=0

mkdir -p "$output" "$into"
"$REPOSITORY/benchmarks/carried.sh" install
printf '%s s: packages and model are there\n' "$SECONDS"
HF_HUB_OFFLINE=1 "$ROOT/venv/bin/python" "$REPOSITORY/benchmarks/real_run.py" \
    "${CONFIG:-$REPOSITORY/benchmarks/real_run.yaml}" --into "$into" || status=$?
printf '%s s: ended with %s\n' "$SECONDS" "$status"
(cd "$into" && find . -type f ! -path './work/*' \( -name '*manifest.json' -o ! -path './results/datasets/*' \
    ! -path './results/models/*' ! -path '*/merged/tok*' -size -20M \( -name '*.json' -o -name '*.jsonl' -o -name '*.log' \
    -o -name '*.html' -o -name '*.png' -o -name samples.parquet \) \) -exec cp --parents -t "$output" {} +)
exit "$status"
