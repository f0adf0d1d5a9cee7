"""benchmarks/real_run_page.py: the figures of its page are those of the run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import report_inputs
import stages

PROGRAM = stages.REPOSITORY / "benchmarks" / "real_run_page.py"


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a run brings back: without weights."""
    monkeypatch.chdir(tmp_path)
    report_inputs.write_upstream()
    run = report_inputs.write_run("real")
    (run / "merged" / "content.txt").unlink()
    (tmp_path / "seconds.json").write_text(json.dumps({"train": 203.4, "sample": 61.0}))
    (tmp_path / "results" / "report.html").write_text("<p>report</p>")
    return tmp_path


def make(output: Path) -> subprocess.CompletedProcess[str]:
    """The finished program."""
    command = [sys.executable, str(PROGRAM), str(output), "--into", str(output / "page")]
    return subprocess.run(command, capture_output=True, text=True, env=stages.environment())


def test_figures_are_those_of_the_run(output: Path) -> None:
    done = make(output)
    assert done.returncode == 0, done.stderr
    text = (output / "page" / "real-run.md").read_text().replace("\N{NO-BREAK SPACE}", " ")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    found = {row[0]: row[1:] for row in rows}
    judged = report_inputs.evaluation()["task"]["samples"]
    classes = [row for row in judged if row["kind"] == "target"]
    valid, solved = sum(row["valid"] for row in classes), sum(min(row["fidelity"]) > 0.99 for row in classes)
    assert found["programs for the classes: valid"][::2] == [f"{100 * valid / 20:.0f} %", "20"]
    assert found["right for N = 0 … 4"][0] == f"{100 * solved / 20:.0f} %"
    assert found["tuned and merged"][0] == "0.3871"
    assert found["adapter on the 4-bit base"] == ["0.3870", "0"]
    assert found["merged onto the base as training saw it, through 4 bits (kept)"] == ["0.3871", "4.2 · 10⁻⁶"]
    assert found["train"] == ["203"]
    assert found["training, tokens a second"] == ["103", "70"]
    assert found["sampling, tokens a second"] == ["", "18"]
    assert found["sampling, tokens"] == ["", f"{36 * 311:,}"]
    targets = report_inputs.evaluation()["task"]["targets"]
    assert all(f"| {each['label']} " in text or f"| {each['label']} ({each['name']}) " in text for each in targets)
    solved_labels = [each["label"] for each in targets if each["solved"]]
    assert f"Classes solved, right for N = 0 … 4: {len(solved_labels)} ({', '.join(solved_labels)})." in text
    assert (output / "page" / "real-run.html").read_text() == "<p>report</p>"
    assert (output / "page" / "real-run.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_a_run_is_one_line(tmp_path: Path) -> None:
    done = make(tmp_path)
    assert done.returncode == 1
    assert "0 runs with an evaluation.json, must be one" in done.stderr.splitlines()[-1]
