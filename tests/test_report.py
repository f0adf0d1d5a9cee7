"""The report shows the artifacts' figures, is one self-contained page, and treats model output as data."""

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_inputs
import stages
from hypothesis import given
from hypothesis import strategies as st

from corax import plots
from corax.artifact import Artifact, open_artifact, read_manifest
from corax.errors import CoraxError
from corax.report import content, page
from corax.report.documents import Target
from corax.report.plots import fidelity_figure, svg

CHANGE = "-0.7263-0.761 to -0.693".replace("-", "\N{MINUS SIGN}")
HOSTILE = "<script>alert(1)</script>{{ 7 * 7 }}</pre>"
VOID = {"meta", "br", "link", "img", "input"}


class Page(HTMLParser):
    """A page's table rows, text, attributes and ids; every element must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.unmeasured = ""
        """The text outside elements of class `measured`."""
        self._open: list[tuple[str, bool]] = []
        self.feed(str(text))
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            inside = bool(self._open) and self._open[-1][1]
            self._open.append((tag, inside or "measured" in (dict(attributes).get("class") or "").split()))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += attributes

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if not (self._open and self._open[-1][1]):
            self.unmeasured += data
        if any(tag in ("td", "th") for tag, _ in self._open):
            self.rows[-1][-1] += data.strip().replace("\N{NO-BREAK SPACE}", " ")

    def row(self, head: str) -> list[str]:
        """The cells of the first row that begins with `head`."""
        return next(row[1:] for row in self.rows if row and row[0] == head)

    @property
    def flat(self) -> str:
        """The text on one line."""
        return " ".join(self.text.split())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `results` of two runs that differ in their rank."""
    root = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        report_inputs.write_upstream()
        report_inputs.write_run("demo")
        report_inputs.write_run("rank-64", rank=64, completion=HOSTILE)
        shutil.copytree(stages.REPOSITORY / "report", root / "report")
        report("demo").rename("one.html")
        report("demo", "rank-64").rename("two.html")
        Path("results/report.manifest.json").unlink()
    return root


@pytest.fixture(scope="module")
def one(made: Path) -> Page:
    """The page about one run."""
    return Page((made / "one.html").read_text())


@pytest.fixture(scope="module")
def two(made: Path) -> Page:
    """The page about two runs."""
    return Page((made / "two.html").read_text())


@pytest.fixture
def results(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them, in the working directory."""
    for name in ("results", "report"):
        shutil.copytree(made / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return Path("results")


def report(*names: str) -> Path:
    """The page about these runs."""
    output = Path("results/report.html")
    runs = [f"results/runs/{name}" for name in names]
    stages.call("report", "--runs", *runs, "--output", output, "--template", "report/report.html.j2")
    return output


def test_figures_equal_the_artifacts(made: Path, one: Page) -> None:
    shown = one
    run = made / "results/runs/demo"
    evaluation = json.loads((run / "evaluation.json").read_text())
    base, tuned = evaluation["held_out"]["base"], evaluation["held_out"]["tuned"]
    assert shown.row("loss (nats per target token)") == ["1.11341.073 to 1.163", "0.38710.347 to 0.437", CHANGE]
    assert shown.row("perplexity") == [f"{base['perplexity']:.3f}", f"{tuned['perplexity']:.3f}", ""]
    assert shown.row("token accuracy") == ["73.1 %71 to 75", "86.5 %84 to 88", "13.4 points12.1 to 14.6"]
    assert shown.row("valid programs") == ["81.2 %57 to 93"]
    assert shown.row("mean fidelity for N = 0, 1, 2") == ["0.830.610.42"]
    classes = [(row[0], row[-1]) for row in shown.rows if len(row) == 7][1:]
    assert classes == [
        (
            f"Dicke 4 ({each['name']})" if each["label"] == "Dicke 4" else each["label"],
            "".join(f"{value:.2f}" for value in each["best"]["fidelity"]) if each["best"] else "no valid program",
        )
        for each in evaluation["task"]["targets"]
    ]
    assert shown.row("right for N ≤ 2") == ["20 %", "35 %", "60 %"]
    assert shown.row("right for all tested N") == ["10 %", "15 %", "25 %"]
    assert shown.row("syntax") == ["3", "3"]
    assert shown.row("wrong state") == ["16", "0"]
    assert shown.row("merged onto the original 16-bit base") == ["0.3952", "0.0221"]
    assert shown.row("merged onto the base as training saw it, through 4 bits: kept") == ["0.3871", "4.2 · 10⁻⁶"]
    plan = json.loads((run / "plan/plan.json").read_text())
    assert "Merging changes the loss from 0.3870 to 0.3871 nats per target token" in shown.flat
    assert shown.row("what was trained") == ["0.3870", "0"]
    assert shown.row("optimizer steps") == [str(plan["steps"]), str(report_inputs.STEPS), "0 %"]
    assert shown.row("seconds per step") == ["4.8", f"{301.5 / 60:.3g}", "+5 %"]
    assert shown.row("tokens per second") == [f"{29800 / 60 / 4.8:.3g}", "70.4", "\N{MINUS SIGN}32 %"]
    assert shown.row("time of all steps (h:mm:ss)") == ["0:04:48", "0:05:02", "+5 %"]
    peak = open_artifact(run / "adapter").content["run"]["peak_memory"]
    assert shown.row("memory of the process")[:2] == [page.size(plan["memory_bytes"]), page.size(peak)]
    for part in plan["memory"]:
        assert shown.row(part["component"])[1] == part["how"]
    assert "Held-out loss: 1.113 → 0.387 nats per target token (\N{MINUS SIGN}65" in shown.flat
    assert "13 of 16 held-out prompts got a valid program, 7 a right one" in shown.flat
    solved = [target["label"] for target in evaluation["task"]["targets"] if target["solved"]]
    fits = [target["label"] for target in evaluation["task"]["targets"] if target["fits"]]
    assert f"{len(fits)} of 20 classes" in shown.flat
    assert f"and {len(solved)} for all tested N ({', '.join(solved)})" in shown.flat


def test_the_validation_loss_is_that_of_the_step_that_was_written(one: Page) -> None:
    assert "The adapter is that of step 40: validation loss 0.3912." in one.flat
    labels = [value or "" for key, value in one.attributes if key == "aria-label"]
    assert [label for label in labels if label.endswith("that of step 40, with a validation loss of 0.391.")]


def test_a_gpu_is_compared_by_what_its_tensors_take(results: Path) -> None:
    """And the trial steps, the pauses and the reason to end early are shown."""
    run = results / "runs/demo"
    manifest = open_artifact(run / "adapter")
    kept = (run / "adapter" / "metrics.jsonl").read_text()
    inputs = [Path(item["path"]) for item in manifest.content["inputs"]]
    with Artifact(run / "adapter", stage="train", inputs=inputs, settings=manifest.content["settings"]) as artifact:
        (artifact.path / "metrics.jsonl").write_text(kept)
        artifact.note(**{**manifest.facts, "stopped": "no lower validation loss in 2 validations"})
        artifact.measured(device="a GPU", ranks=2, segments=3, peak_gpu_bytes=1_980_000_000)
        artifact.measured(planned_pack_seconds=0.5, probe_pack_seconds=0.45)
        artifact.measured(planned_peak_bytes=2_000_000_000, probe_peak_bytes=2_100_000_000)
    shown = Page(report("demo").read_text())
    planned = json.loads((run / "plan/plan.json").read_text())["memory_allocated_bytes"]
    assert shown.row("memory of tensors on a device")[:2] == [page.size(planned), "1.98 GB"]
    assert shown.row("trial step, longest pack: seconds") == ["0.5", "0.45", "\N{MINUS SIGN}10 %"]
    assert shown.row("trial step, longest pack: memory") == ["2 GB", "2.1 GB", "+5 %"]
    assert shown.row("parts, with pauses between")[:2] == ["1", "3"]
    assert shown.row("seconds per step")[1:] == ["–", ""]
    assert "Training ended early: no lower validation loss in 2 validations." in shown.flat


def test_samples_are_counted_by_temperature(one: Page) -> None:
    drawn = [row for row in report_inputs.evaluation()["task"]["samples"] if row["kind"] == "target"]
    for temperature, own in (("0.2", drawn[::5]), ("0.6", [row for row in drawn if row["sample"] % 5])):
        valid = sum(row["valid"] for row in own) / len(own)
        solved = sum(min(row["fidelity"]) > 0.99 for row in own) / len(own)
        found = one.row(f"{temperature}, 0.95")
        assert found[0] == str(len(own))
        assert found[1].startswith(page.share(valid).replace("\N{NO-BREAK SPACE}", " "))
        assert found[3].startswith(page.share(solved).replace("\N{NO-BREAK SPACE}", " "))


def test_benchmarks_of_runs_that_have_them(results: Path) -> None:
    run = results / "runs/demo"
    with Artifact(run / "harness.json", stage="harness", inputs=[run / "merged"], file=True) as artifact:
        artifact.path.write_text(json.dumps(report_inputs.harness()))
    shown = Page(report("demo", "rank-64").read_text())
    assert shown.text.count("Tasks of lm-evaluation-harness") == 1
    assert shown.row("colours100 documents, 2 examples") == [
        "acchigher is better",
        "0.4100± 0.0492",
        "0.5300± 0.0499",
        "0.12000.0200 to 0.2200",
    ]
    minus = "\N{MINUS SIGN}2.2500"
    assert shown.row("birds12 documents") == ["word_perplexitylower is better", "21.5000", "19.2500", minus]
    assert str(run / "harness.json") in shown.text
    with Artifact(run / "merged", stage="merge", inputs=[report_inputs.MODEL]) as artifact:
        (artifact.path / "content.txt").write_text("merged again, harness.json left behind")
        artifact.note(**read_manifest(results / "runs/rank-64/merged/manifest.json").facts)
    assert "Tasks of lm-evaluation-harness" not in Page(report("demo").read_text()).text


def test_many_runs_are_not_told_one_by_one(results: Path) -> None:
    for rank in (4, 8):
        report_inputs.write_run(f"rank-{rank}", rank=rank)
    shown = Page(report("demo", "rank-64", "rank-4", "rank-8").read_text())
    assert "4 runs Each run fine-tuned a model; their outcomes stand side by side below." in shown.flat
    assert shown.row("tuned") == ["QLoRA"] * 4


@pytest.mark.parametrize(
    ("method", "bits", "words"),
    [
        ("lora", 4, "QLoRA"),
        ("lora", 16, "LoRA, base in 16 bits"),
        ("full", 16, "all weights"),
        ("prompt_tuning", 8, "prompt tuning, base in 8 bits"),
    ],
)
def test_the_way_to_tune_in_words(method: str, bits: int, words: str) -> None:
    assert content.method_in_words({"tuning": {"method": method}, "train": {"bits": bits}}) == words


def test_programs_and_provenance_are_there(results: Path, one: Page) -> None:
    shown = one
    for sample in report_inputs.samples():
        assert sample["completion"] in shown.text
        assert sample["prompt"] in shown.text
    for path in [report_inputs.MODEL, report_inputs.RAW, *content.artifacts(results / "runs/demo")]:
        manifest = open_artifact(path)
        assert str(path) in shown.text
        assert manifest.digest in shown.text
        assert manifest.content["run"]["command"] in shown.text


def test_settings_are_those_that_the_stage_used(one: Page) -> None:
    """The plan's manifest has a `train` section too, with the default learning rate."""
    assert "learning_rate0.001 Peak learning rate." in one.flat
    assert "lora_alpha32.0 " in one.flat


def test_runs_stand_side_by_side_with_what_differs(two: Page) -> None:
    assert ["run", "demo", "rank-64"] in two.rows
    assert two.row("lora.r") == ["16", "64"]
    assert two.row("held-out loss, base → tuned") == ["1.113 → 0.387"] * 2
    assert not [row for row in two.rows if row and row[0] == "lora.lora_alpha"]


def adapter_loss(loss: float) -> Callable[[Path], None]:
    """Write the run's adapter again, with this validation loss as its manifest's fact."""

    def write(run: Path) -> None:
        content, kept = open_artifact(run / "adapter").content, (run / "adapter" / "metrics.jsonl").read_text()
        inputs = [Path(item["path"]) for item in content["inputs"]]
        with Artifact(run / "adapter", stage="train", inputs=inputs, settings=content["settings"]) as artifact:
            (artifact.path / "metrics.jsonl").write_text(kept)
            artifact.note(**report_inputs.adapter_facts(loss))

    return write


def test_the_run_to_take_is_the_one_with_the_lowest_validation_loss(results: Path) -> None:
    report_inputs.write_run("rank-4", rank=4)
    for name, loss in (("demo", 0.41), ("rank-64", 0.3875), ("rank-4", 0.52)):
        adapter_loss(loss)(results / "runs" / name)
    shown = Page(report("demo", "rank-64", "rank-4").read_text())
    heads, *rows = [row for row in shown.rows if len(row) == 6][:4]
    assert heads[:4] == ["run", "lora.r", "steps", "validation loss"]
    assert [row[:4] for row in rows] == [
        ["rank-64", "64", "60", "0.3875"],
        ["demo", "16", "60", "0.4100"],
        ["rank-4", "4", "60", "0.5200"],
    ]
    assert (
        "The lowest validation loss is that of rank-64: 0.3875 nats per target token, 0.0225 below the next."
        in shown.flat
    )


def test_runs_on_other_data_are_not_compared(results: Path) -> None:
    with Artifact(report_inputs.TOKENS, stage="pretokenize") as artifact:
        (artifact.path / "content.txt").write_text("other tokens")
    report_inputs.write_run("other")
    assert "Which to take" not in Page(report("demo", "other").read_text()).text
    assert "Which to take" not in Page(report("demo").read_text()).text


def test_data_without_a_task(results: Path) -> None:
    rewrite("evaluation.json", lambda _: report_inputs.general_evaluation())(results / "runs/demo")
    shown = Page(report("demo", "rank-64").read_text())
    assert shown.row("equal to the reference") == ["25 %14 to 41"]
    assert shown.row("RMSLE") == ["0.412"]
    assert shown.row("exact matches, held-out") == ["25 %", "–"]
    assert shown.row("valid programs, held-out") == ["–", "81.2 %"]
    assert shown.row("mean absolute error of numbers") == ["47.3", "–"]
    assert "9 of 36 held-out prompts got exactly the completion in the data" in shown.flat
    alone = Page(report("demo").read_text())
    assert "Classes of states" not in alone.text
    assert "differs from its reference" in alone.flat
    numbers = report_inputs.general_evaluation()
    numbers["task"]["held_out"]["numbers"]["relative_error"] = None
    rewrite("evaluation.json", lambda _: numbers)(results / "runs/demo")
    assert Page(report("demo").read_text()).row("mean relative error") == ["–"]


def test_page_is_self_contained_and_accessible(made: Path, two: Page) -> None:
    text, shown = (made / "two.html").read_text(), two
    assert not {"script", "link", "iframe", "img", "base"} & set(shown.tags)
    links = [value or "" for key, value in shown.attributes if key in ("src", "href", "xlink:href", "action")]
    assert links
    assert all(link.startswith("#") for link in links)
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) == {"#"}
    ids = [value for key, value in shown.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links} <= set(ids)
    assert shown.tags.count("svg") == len(re.findall(r'<svg role="img" aria-label="[^"]{10,}"', text)) == 9
    assert "viewport" in [value for key, value in shown.attributes if key == "name"]


def test_model_output_is_text_never_markup(two: Page) -> None:
    assert HOSTILE in two.text
    assert "script" not in two.tags
    label = '<script>"&$x_{1}$'
    best = {"fidelity": [1, 1, 1, 0.5, 0.2], "first_failure": 3, "program": "", "sample": 0}
    counts = {"samples": 1, "distinct": 1, "valid": 1, "fits": 1, "solved": 0, "intervals": {}, "reasons": {}}
    target = Target.model_validate({"name": "x", "label": label, **counts, "best": best})
    drawn = Page(svg(fidelity_figure([target]), "x", label))
    assert label in drawn.text
    assert "script" not in drawn.tags


def test_names_of_runs_are_text_and_their_sections_have_ids_of_their_own(results: Path) -> None:
    names = ["runs", "compared-1", 'a"><script>alert(1)<', r"\1 $x_{1}$"]
    for rank, name in enumerate(names, 1):
        report_inputs.write_run(name, rank=rank)
    shown = Page(report(*names).read_text())
    assert "script" not in shown.tags
    ids = [value for key, value in shown.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    assert {f"run-{name}" for name in names} <= set(ids)
    links = {(value or "")[1:] for key, value in shown.attributes if key in ("href", "xlink:href")}
    assert links <= set(ids)


def test_a_base_that_knows_the_data_already(results: Path) -> None:
    """A loss that rounds to 0 has no relative change."""

    def known(content: Any) -> Any:
        content["held_out"]["base"]["loss"] = 0.0
        return content

    rewrite("evaluation.json", known)(results / "runs/demo")
    assert "Held-out loss: 0.000 → 0.387 nats per target token. " in Page(report("demo").read_text()).flat


def test_solved_classes_look_unlike_those_that_fail_late() -> None:
    def drawn(fidelity: list[float], failure: int) -> str:
        best = {"fidelity": fidelity, "first_failure": failure, "program": "", "sample": 0}
        counts = {"samples": 1, "distinct": 1, "valid": 1, "fits": 1, "solved": 0, "intervals": {}, "reasons": {}}
        target = Target.model_validate({"name": "x", "label": "The class", **counts, "best": best})
        return str(svg(fidelity_figure([target]), "x", "x"))

    solved, late, at_once = drawn([1] * 5, 5), drawn([1, 1, 1, 1, 0.99], 4), drawn([0.5, 1, 1, 1, 1], 0)
    for text, colour in ((solved, "--blue"), (late, "--orange")):
        assert "The class" in text
        assert f"var({colour})" in text
        assert sum(f"var({other})" in text for other in ("--blue", "--orange")) == 1
    assert "The class" not in at_once
    assert "var(--blue)" not in at_once


def test_same_artifacts_give_the_same_bytes(made: Path, results: Path) -> None:
    assert report("demo").read_bytes() == (made / "one.html").read_bytes()


def test_executions_differ_in_what_is_measured_alone(results: Path, one: Page) -> None:
    report_inputs.write_run("demo", seconds=999.9)
    again = Page(report("demo").read_text())
    assert again.text != one.text
    assert again.unmeasured == one.unmeasured
    assert again.attributes == one.attributes


def test_an_artifact_upstream_that_is_gone_is_named_on_the_page(results: Path) -> None:
    shutil.rmtree(report_inputs.RAW)
    shown = Page(report("demo").read_text())
    assert f"{report_inputs.RAW} not here" in shown.flat


def rewrite(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Write a JSON artifact of the run again, changed."""

    def write(run: Path) -> None:
        path = run / name
        value = change(json.loads(path.read_text()))
        inputs = [Path(item["path"]) for item in open_artifact(path).content["inputs"]]
        with Artifact(path, stage="evaluate", inputs=inputs, file=True) as artifact:
            artifact.path.write_text(json.dumps(value))

    return write


def metrics_line(line: str) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        with Artifact(run / "adapter", stage="train") as artifact:
            (artifact.path / "metrics.jsonl").write_text(line)

    return write


def merged_without_scores(run: Path) -> None:
    inputs = [Path(item["path"]) for item in open_artifact(run / "merged").content["inputs"]]
    with Artifact(run / "merged", stage="merge", inputs=inputs) as artifact:
        (artifact.path / "content.txt").write_text("")


def without(key: str) -> Callable[[Any], Any]:
    return lambda value: {**value, "held_out": {k: v for k, v in value["held_out"].items() if k != key}}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: shutil.rmtree(run / "plan"), ["plan/manifest.json", "missing"]),
        (lambda run: shutil.rmtree(run / "merged"), ["merged/manifest.json", "missing"]),
        (lambda run: (run / "samples.parquet").unlink(), ["samples.parquet", "missing"]),
        (lambda run: (run / "evaluation.manifest.json").unlink(), ["evaluation.manifest.json", "missing"]),
        (lambda run: shutil.rmtree(run), ["plan/manifest.json", "missing"]),
        (rewrite("evaluation.json", without("base")), ["evaluation.json", "held_out.base: missing"]),
        (merged_without_scores, ["merged/manifest.json", "base: missing"]),
        (rewrite("evaluation.json", lambda value: [value]), ["evaluation.json"]),
        (rewrite("evaluation.json", lambda value: {**value, "task": None}), ["evaluation.json", "task", "None"]),
        (
            rewrite("evaluation.json", lambda value: {**value, "task": {**value["task"], "samples": []}}),
            ["samples.parquet", "sample 0", "evaluation.json"],
        ),
        (metrics_line('{"step": 1, "loss": 0.5}\n{"step": 2, "lo'), ["metrics.jsonl", "line 2"]),
        (metrics_line('{"loss": 0.5}\n'), ["metrics.jsonl", "line 1", "step: missing"]),
    ],
)
def test_what_is_missing_is_one_line(results: Path, damage: Callable[[Path], None], words: list[str]) -> None:
    damage(results / "runs/demo")
    with pytest.raises(CoraxError) as error:
        report("demo")
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)
    assert not (results / "report.html").exists()


def test_options_that_make_no_sense_are_one_line(results: Path) -> None:
    with pytest.raises(CoraxError, match=r"\.html"):
        stages.call("report", "--runs", "results/runs/demo", "--output", "results/report.txt")
    with pytest.raises(CoraxError, match="demo, demo"):
        report("demo", "demo")


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=30), st.integers(0, 6))
def test_moving_mean_is_the_mean_of_the_neighbours(values: list[float], half: int) -> None:
    expected = [np.mean(values[max(0, place - half) : place + half + 1]) for place in range(len(values))]
    np.testing.assert_allclose(plots.moving_mean(np.array(values), 2 * half + 1), expected, atol=1e-9)


@pytest.mark.parametrize("rows", [report_inputs.metrics(), report_inputs.metrics()[:1], []])
def test_loss_plot_has_the_same_bytes_every_time(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    for name in ("a.png", "b.png"):
        plots.plot_loss(tmp_path / name, rows)
    first, second = (tmp_path / name for name in ("a.png", "b.png"))
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1, "1".ljust(3, "0")), (0.5, "50"), (0.8125, "81.2"), (0.002, "0.2"), (0.996, "99.6")],
)
def test_shares_in_per_cent(value: float, text: str) -> None:
    assert page.share(value) == f"{text}\N{NO-BREAK SPACE}%"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (5.4412, "5.44"),
        (1234, "1.23 · 10³"),
        (1.64e-06, "1.64 · 10⁻⁶"),
        (-2.5, "\N{MINUS SIGN}2.5"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert page.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.004, "0"), (-0.004, "0"), (0.32, "+32"), (-0.24, "\N{MINUS SIGN}24")]
)
def test_changes_in_per_cent(value: float, text: str) -> None:
    assert page.signed_share(value) == f"{text}\N{NO-BREAK SPACE}%"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (5_700_000_000, "5.7 GB"), (12_345_678, "12.3 MB")],
)
def test_sizes(value: int, text: str) -> None:
    assert page.size(value) == text
