"""benchmarks/training.py with a tiny model on the CPU: what it compares, and what it writes."""

import json
import subprocess
import sys
from pathlib import Path

import stages


def test_groups_run_and_fill_the_table(tmp_path: Path) -> None:
    program = stages.REPOSITORY / "benchmarks" / "training.py"
    command = [sys.executable, str(program), "--tiny", "--groups", "ours,load", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=stages.environment())
    assert done.returncode == 0 and "failed" not in done.stdout, done.stdout + done.stderr
    rows = {row["name"]: row for row in json.loads((tmp_path / "training.json").read_text())["rows"]}
    for name in ("gradient: cosine", "loss: difference", "gradients made twice are equal bit for bit"):
        assert rows[name]["holds"]
    assert {f"ours, {card} GB" for card in (80, 40, 12)} <= rows.keys()
    assert rows["ours, 80 GB: first loss"]["value"] == rows["ours, 12 GB: first loss"]["value"]
    assert "load: to the first step's end" in rows
