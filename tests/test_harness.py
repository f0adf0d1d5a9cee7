"""lm-evaluation-harness: what a task file may say, and real comparisons of tiny models.

Those need the packages of envs/harness.txt, which lie apart from the environment: `make work/packages/harness`.
"""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import stages
import tiny
import yaml
from hypothesis import given
from hypothesis import strategies as st

from corax import config
from corax.artifact import open_artifact, read_manifest, sha256
from corax.containers import enter, names
from corax.errors import CoraxError
from corax.harness import task_file
from corax.settings.harness import HarnessSettings

SHIPPED = Path(__file__).parent / "data" / "harness"
TASKS = [SHIPPED / f"{name}.yaml" for name in ("colours", "sums", "sentences")]
PACKAGES = stages.REPOSITORY / "work" / "packages" / "harness"
needs_harness = pytest.mark.skipif(not PACKAGES.is_dir(), reason="needs make work/packages/harness")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped tasks, a module beside them that leaves a trace when it is imported, and data elsewhere."""
    shutil.copytree(SHIPPED, tmp_path / "tasks")
    (tmp_path / "tasks/evil.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\ndef f(*_, **__): return []\n")
    (tmp_path / "outside.jsonl").write_text('{"thing": "x", "choices": ["a"], "answer": 0}\n')
    (tmp_path / "tasks/link.jsonl").symlink_to(tmp_path / "outside.jsonl")
    return tmp_path / "tasks"


def write(folder: Path, name: str = "colours", file: str = "changed.yaml", **changes: Any) -> Path:
    """The task file `name` with `changes`, in another file; a key whose value is None is left out."""
    values = {**yaml.safe_load((SHIPPED / f"{name}.yaml").read_text()), **changes}
    path = folder / file
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    return path


def refusal(path: Path, num_fewshot: int | None = None) -> str:
    """The one line with which a task file is refused; nothing may have been imported."""
    with pytest.raises(CoraxError) as caught:
        task_file.read_all([path], num_fewshot)
    line = str(caught.value)
    assert "\n" not in line and line.startswith(str(path))
    assert not (path.parent.parent / "trace").exists()
    return line


def test_the_shipped_tasks_are_read_with_all_their_files() -> None:
    tasks = task_file.read_all(TASKS)
    assert [task.content.task for task in tasks] == ["colours", "sums", "sentences"]
    assert [file.name for task in tasks for file in task.files] == [
        *("colours.yaml", "colours.jsonl", "sums.yaml", "sums.json", "sentences.yaml", "sentences.jsonl")
    ]


@pytest.mark.parametrize(
    "line",
    [
        "process_docs: !function evil.f",
        "doc_to_text: !function evil.f",
        "doc_to_text: !!python/name:os.system",
        "doc_to_text: !!python/object/apply:os.system [touch trace]",
        "description: !!python/module:evil",
        "metric_list: [{metric: !function evil.f}]",
    ],
)
def test_a_tag_that_names_code_is_refused(folder: Path, line: str) -> None:
    path = folder / "colours.yaml"
    path.write_text(f"{path.read_text()}{line}\n")
    number = len(path.read_text().splitlines())
    assert re.search(rf", line {number}: .*a task file may name no code", refusal(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"include": "../other.yaml"}, "the key 'include' is not allowed here, allowed: task, "),
        ({"class": "evil.Task"}, "the key 'class' is not allowed"),
        ({"group": "all"}, "the key 'group' is not allowed"),
        ({"custom_dataset": "evil.f"}, "the key 'custom_dataset' is not allowed"),
        ({"process_results": "evil.f"}, "the key 'process_results' is not allowed"),
        ({"use_prompt": "promptsource:x"}, "the key 'use_prompt' is not allowed"),
        ({"unsafe_code": True}, "the key 'unsafe_code' is not allowed"),
        ({"dataset_path": "some/data"}, "dataset_path: input should be 'json' or 'parquet', found 'some/data'"),
        ({"dataset_path": "evil.py"}, "dataset_path: input should be 'json' or 'parquet'"),
        (
            {"dataset_kwargs": {"data_files": {"test": "https://host/x.jsonl"}}},
            "no file 'https://host/x.jsonl' beside it",
        ),
        ({"dataset_kwargs": {"data_files": {"test": "../outside.jsonl"}}}, "data_files.test: '../outside.jsonl' lies"),
        ({"dataset_kwargs": {"data_files": {"test": "/etc/passwd"}}}, "data_files.test: '/etc/passwd' lies outside"),
        ({"dataset_kwargs": {"data_files": {"test": "link.jsonl"}}}, "data_files.test: 'link.jsonl' lies outside"),
        ({"dataset_kwargs": {"data_files": {"test": "*.jsonl"}}}, r"no file '\*.jsonl' beside it"),
        (
            {"dataset_kwargs": {"data_files": {"test": "colours.jsonl"}, "trust_remote_code": True}},
            "dataset_kwargs: the key 'trust_remote_code' is not allowed here, allowed: data_files",
        ),
        ({"metric_list": [{"metric": "code_eval"}]}, r"metric_list.0.metric: 'code_eval' .*, allowed: acc, acc_norm"),
        ({"metric_list": [{"metric": "./evil.py"}]}, r"metric_list.0.metric: './evil.py' is no metric"),
        (
            {"metric_list": [{"metric": "acc", "hf_evaluate": True}]},
            "metric_list.0: the key 'hf_evaluate' is not allowed here, allowed: metric, aggregation",
        ),
        ({"metric_list": [{"metric": "acc", "aggregation": "evil.f"}]}, "metric_list.0.aggregation: input should be"),
        (
            {"filter_list": [{"name": "x", "filter": [{"function": "custom", "filter_fn": "evil.f"}]}]},
            "filter_list.0.filter.0: the key 'filter_fn' is not allowed",
        ),
        (
            {"filter_list": [{"name": "x", "filter": [{"function": "custom"}]}]},
            "filter_list.0.filter.0.function: input should be 'regex', ",
        ),
        ({"fewshot_config": {"sampler": "evil.f"}}, "fewshot_config.sampler: input should be 'default' or 'first_n'"),
        ({"test_split": "dev"}, "test_split: 'dev' is no split of dataset_kwargs.data_files: test"),
        ({"test_split": None}, "test_split or validation_split: one of them is needed"),
        ({"fewshot_split": None}, "fewshot_split: missing, though num_fewshot is 2"),
        ({"doc_to_choice": None}, "doc_to_choice: missing"),
        ({"output_type": "code"}, "output_type: input should be 'multiple_choice', "),
        ({"generation_kwargs": {"until": "x"}}, "generation_kwargs: needed with output_type generate_until"),
        ({"task": "../../x"}, "task: string should match pattern"),
    ],
)
def test_what_could_run_code_or_leave_the_folder_is_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    assert re.search(message, refusal(write(folder, **changes)))


def test_sampling_is_refused(folder: Path) -> None:
    line = refusal(write(folder, "sums", generation_kwargs={"until": "\n", "do_sample": True}))
    assert "generation_kwargs.do_sample: input should be False, found True" in line


@pytest.mark.parametrize("text", ["", "- a\n", "task: [", "a: &a [*a]\n", "\x00", "1: 2\n", "task: " + "[" * 3000])
def test_what_is_no_task_file_is_refused(folder: Path, text: str) -> None:
    path = folder / "colours.yaml"
    path.write_text(text)
    refusal(path)


def test_a_missing_file_and_a_name_given_twice(folder: Path) -> None:
    assert "No such file" in refusal(folder / "absent.yaml")
    with pytest.raises(CoraxError, match=r"changed.yaml: task: 'colours' is the name of .*/colours.yaml too"):
        task_file.read_all([folder / "colours.yaml", write(folder)])


def test_wanted_examples_need_a_split_to_come_from() -> None:
    task_file.read_all(TASKS, 0)
    with pytest.raises(CoraxError, match=r"sentences.yaml: fewshot_split: missing, though num_fewshot is 4"):
        task_file.read_all(TASKS, 4)


Values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(task_file.TaskFile.model_fields)) | st.text(), Values, max_size=6))
def test_any_mapping_is_a_task_or_one_line(tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("any") / "task.yaml"
    values = yaml.safe_load(TASKS[0].read_text())
    path.write_text(yaml.safe_dump({**values, **changes}))
    for name in ("colours.jsonl", "sums.json"):
        shutil.copy(SHIPPED / name, path.parent)
    try:
        task = task_file.read(path)
    except CoraxError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
    else:
        assert set(changes) <= set(task_file.TaskFile.model_fields)
        assert all(file.resolve().parent == path.parent.resolve() for file in task.files)


def test_the_configuration_is_checked_before_any_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    runs = {"r": {"model": "m", "dataset": "d", "harness": {"tasks": [str(TASKS[0]), "absent.yaml"]}}}
    values = {"models": {"m": {"source": "local", "path": "model"}}, "datasets": {"d": {"generate": {}}}, "runs": runs}
    with pytest.raises(CoraxError, match=r"^config.yaml: runs.r.harness.tasks: absent.yaml: No such file"):
        config.check(values)


def test_its_image_is_wanted_by_its_users_only_and_sees_the_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(names.LOCKS["train"]) < set(names.LOCKS["harness"])
    assert names.wanted() == ["data", "train"]
    assert names.wanted(["harness"]) == ["data", "train", "harness"]
    assert names.command(["harness"]) == "make images HARNESS=1"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    runs = {"r": {"model": "m", "dataset": "d", "harness": {"tasks": [str(SHIPPED / "colours.yaml")]}}}
    values = {"models": {"m": {"source": "local", "path": "model"}}, "datasets": {"d": {"generate": {}}}, "runs": runs}
    assert str(SHIPPED) in enter.outside(config.check(values), tmp_path)


def planned(folder: Path, tasks: list[str]) -> str:
    """What a dry run says for a run with these task files."""
    tiny_run = {"model": "m", "dataset": "d", "plan": {"device": "cpu"}, "harness": {"tasks": tasks}}
    content = {
        "models": {"m": {"source": "local", "path": "model"}},
        "datasets": {"d": {"generate": {}}},
        "runs": {"r": tiny_run},
    }
    (folder / "model").mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(stages.REPOSITORY / "Snakefile"),
        "--dry-run",
        "-p",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=stages.environment())
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_stage_is_there_only_for_runs_that_name_tasks(tmp_path: Path) -> None:
    without = planned(tmp_path, [])
    assert not [word for word in ("rule harness:", "harness.manifest.json", "--harness.") if word in without]
    shutil.copytree(SHIPPED, tmp_path / "my tasks")
    said = planned(tmp_path, ["my tasks/colours.yaml"])
    assert len(re.findall(r"^ *rule harness:$", said, re.MULTILINE)) == 1
    job = said[said.index("rule harness:") :]
    assert "my tasks/colours.yaml, my tasks/colours.jsonl" in job
    assert "--harness.tasks 'my tasks/colours.yaml' " in job
    report = said[said.index("rule report:") :]
    assert "results/runs/r/harness.manifest.json" in report


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two tiny models of one tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    return {name: tiny.model_folder(folder / name, "plain", seed) for seed, name in enumerate(("base", "tuned"))}


@pytest.fixture(scope="module")
def comparison() -> Iterator[ModuleType]:
    """The module that imports the harness, which lies apart from the environment."""
    sys.path.append(str(PACKAGES))
    os.environ["DISABLE_MULTIPROC"] = "1"
    from corax.harness import comparison

    yield comparison
    sys.path.remove(str(PACKAGES))


def compare(models: dict[str, Path], output: Path, *tasks: Path, **options: object) -> list[dict[str, Any]]:
    """The tasks of harness.json that the stage makes, in this process."""
    given = [word for key, value in options.items() for word in (f"--harness.{key}", value)]
    folders = ["--base", models["base"], "--tuned", models["tuned"]]
    stages.call("harness", *folders, "--harness.tasks", *tasks, "--output", output, *given)
    found: list[dict[str, Any]] = json.loads(output.read_text())["tasks"]
    return found


@needs_harness
def test_the_artifact(comparison: ModuleType, models: dict[str, Path], tmp_path: Path) -> None:
    first, second = tmp_path / "a/harness.json", tmp_path / "b/harness.json"
    colours, sums, sentences = compare(models, first, *TASKS)
    compare(models, second, *TASKS)
    assert first.read_bytes() == second.read_bytes()
    manifest = open_artifact(first).content
    assert manifest["facts"] == {"lm_eval": "0.4.13", "dtype": "torch.float32", "documents": 12 + 12 + 8}
    files = {entry["path"]: entry["digest"] for entry in manifest["inputs"]}
    for path in sorted(SHIPPED.iterdir()):
        assert files[str(path)] == sha256(path)
    assert files[str(models["tuned"])] == read_manifest(models["tuned"] / "manifest.json").digest
    assert (colours["kind"], colours["documents"], colours["used"], colours["num_fewshot"]) == (
        *("multiple_choice", 12, 12, 2),
    )
    assert [metric["name"] for metric in colours["metrics"]] == ["acc", "acc_norm"]
    assert (sums["metrics"][0]["filter"], sums["num_fewshot"]) == ("first-number", 3)
    assert [metric["higher_is_better"] for metric in sentences["metrics"]] == [False, False]


def log_probability(folder: Path, prompt: str, continuation: str) -> float:
    """The log-probability of a continuation in nats; an empty prompt is the token that begins a text."""
    import torch

    from corax.model import load_plain

    tokens, model = tiny.tokenizer("plain"), load_plain(folder, torch.float32, torch.device("cpu"))
    before = tokens.encode(prompt).ids
    wanted = tokens.encode(prompt + continuation).ids[len(before) :]
    start = before or tokens.encode("<s>").ids
    with torch.inference_mode():
        scores = model(torch.tensor([[*start, *wanted]])).logits[0, len(start) - 1 : -1].log_softmax(-1)
    return float(scores.gather(1, torch.tensor(wanted)[:, None]).sum())


@needs_harness
def test_figures_are_those_of_a_direct_computation(
    comparison: ModuleType, models: dict[str, Path], folder: Path
) -> None:
    choice = write(folder, num_fewshot=0)
    one_answer: dict[str, Any] = {"doc_to_choice": None, "doc_to_target": "{{choices[answer]}}", "num_fewshot": 0}
    kind: dict[str, Any] = {
        "task": "answers",
        "output_type": "loglikelihood",
        "metric_list": [{"metric": "perplexity"}],
    }
    answers = write(folder, file="answers.yaml", **one_answer, **kind)
    found = compare(models, folder / "harness.json", choice, answers, folder / "sentences.yaml", batch_size=3)
    colours, given, sentences = ({each["name"]: each for each in task["metrics"]} for task in found)
    rows = [json.loads(line) for line in (SHIPPED / "colours.jsonl").read_text().splitlines()]
    texts = [json.loads(line)["text"] for line in (SHIPPED / "sentences.jsonl").read_text().splitlines()]
    for name, model in models.items():
        right, answer = [], []
        for row in rows:
            prompt = f"Question: What colour is {row['thing']}?\nAnswer:"
            scores = [log_probability(model, prompt, f" {choice}") for choice in row["choices"]]
            right.append(scores.index(max(scores)) == row["answer"])
            answer.append(log_probability(model, prompt, row["choices"][row["answer"]]))
        share = sum(right) / 12
        assert colours["acc"][name]["value"] == pytest.approx(share, abs=1e-6)
        assert colours["acc"][name]["stderr"] == pytest.approx(math.sqrt(share * (1 - share) / 11), abs=1e-6)
        assert given["perplexity"][name]["value"] == pytest.approx(math.exp(-sum(answer) / 12), rel=1e-4)
        nats = -sum(log_probability(model, "", text) for text in texts)
        size = sum(len(text.encode()) for text in texts)
        assert sentences["bits_per_byte"][name]["value"] == pytest.approx(nats / size / math.log(2), rel=1e-5)
    for metric in (colours["acc"], sentences["bits_per_byte"]):
        difference, (low, high) = metric["difference"]["value"], metric["difference"]["interval"]
        assert difference == pytest.approx(metric["tuned"]["value"] - metric["base"]["value"], abs=2e-6)
        assert low <= difference <= high


@needs_harness
def test_a_model_answers_as_it_does_outside_the_harness(
    comparison: ModuleType, models: dict[str, Path], folder: Path
) -> None:
    import torch

    from corax.model import load_plain

    tokens, model = tiny.tokenizer("plain"), load_plain(models["tuned"], torch.float32, torch.device("cpu"))
    rows = []
    for number in range(6):
        ids = torch.tensor([tokens.encode(f"{number} + 4 =").ids])
        made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        rows.append({"a": number, "b": 4, "sum": tokens.decode(made[0, ids.shape[1] :].tolist()).split("\n")[0]})
    (folder / "sums.json").write_text(json.dumps(rows))
    changes: dict[str, Any] = {"filter_list": None, "num_fewshot": 0, "fewshot_config": None}
    (task,) = compare(models, folder / "harness.json", write(folder, "sums", **changes), batch_size=4)
    assert task["metrics"][0]["tuned"]["value"] == 1.0
    assert task["metrics"][0]["base"]["value"] < 1.0


@needs_harness
def test_both_models_are_shown_the_same_and_of_each_task_the_first_documents(comparison: ModuleType) -> None:
    settings = HarnessSettings(tasks=list(map(str, TASKS)), limit=5)
    (task,) = task_file.read_all([TASKS[0]])
    shown = [[instance.args for instance in comparison.build(task, settings).instances] for _ in range(2)]
    assert shown[0] == shown[1] and len(shown[0]) == 5 * 4
    things = [json.loads(line)["thing"] for line in (SHIPPED / "colours.jsonl").read_text().splitlines()]
    for number, (prompt, _) in enumerate(shown[0]):
        examples, question = prompt.rsplit("Question: ", 1)
        assert question == f"What colour is {things[number // 4]}?\nAnswer:"
        assert examples.count("Question: ") == 2 and things[number // 4] not in examples


@needs_harness
def test_a_model_against_itself(comparison: ModuleType, models: dict[str, Path], tmp_path: Path) -> None:
    same = {"base": models["base"], "tuned": models["base"]}
    for task in compare(same, tmp_path / "harness.json", *TASKS, limit=4):
        assert task["used"] == 4
        for metric in task["metrics"]:
            assert metric["difference"] == {"value": 0.0, "interval": [0.0, 0.0]}


@needs_harness
@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('touch TRACE').read() }}",
        "{{ lipsum.__globals__['os'].system('touch TRACE') }}",
        "{{ thing | attr('__class__') }}{{ thing.format.__globals__ }}",
        "{{ choices.append('x') }}",
        "{% include 'colours.yaml' %}",
        "{{ absent }}",
        "{{ thing",
        "{{ thing | regex_replace('(', 'x') }}",
    ],
)
def test_a_template_reaches_nothing_but_its_row(
    comparison: ModuleType, models: dict[str, Path], folder: Path, template: str
) -> None:
    trace = folder.parent / "trace"
    path = write(folder, doc_to_text=template.replace("TRACE", str(trace)))
    with pytest.raises(CoraxError, match=rf"^{re.escape(str(path))}: the harness cannot use it: "):
        compare(models, folder / "harness.json", path)
    assert not trace.exists()
    assert not (folder / "harness.json").exists() and not list(folder.glob(".harness*"))


@needs_harness
def test_data_is_a_value_and_never_a_template(comparison: ModuleType, folder: Path) -> None:
    wild = "{{ 7 * 7 }} {% for x in y %} {# z #} ${HOME} `id` \\n é"
    row = {"thing": wild, "choices": ["{{ 1 }}", "b"], "answer": 0}
    (folder / "colours.jsonl").write_text(json.dumps(row) + "\n")
    (task,) = task_file.read_all([write(folder, num_fewshot=0)])
    built = comparison.build(task, HarnessSettings(tasks=["x"]))
    assert [instance.args for instance in built.instances] == [
        (f"Question: What colour is {wild}?\nAnswer:", " {{ 1 }}"),
        (f"Question: What colour is {wild}?\nAnswer:", " b"),
    ]


@needs_harness
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no rows"),
        ("[1]", "row 1 is int, allowed: an object"),
        ('{"thing": ', "neither a list nor lines of JSON objects"),
        ('{"thing": "x"}\n{"thing": [1]}\n', "the harness cannot use it"),
        ('{"thing": "x", "choices": ["a", "b"]}\n', "the harness cannot use it"),
    ],
)
def test_wrong_data_is_one_line(
    comparison: ModuleType, models: dict[str, Path], folder: Path, content: str, message: str
) -> None:
    (folder / "colours.jsonl").write_text(content)
    with pytest.raises(CoraxError, match=message) as caught:
        compare(models, folder / "harness.json", folder / "colours.yaml")
    assert "colours." in str(caught.value) and not (folder / "harness.json").exists()


@needs_harness
def test_what_the_harness_cannot_compute_is_one_line(
    comparison: ModuleType, models: dict[str, Path], folder: Path
) -> None:
    (folder / "sentences.jsonl").write_text(json.dumps({"text": "x" * 1000}) + "\n")
    task = write(folder, "sentences", metric_list=[{"metric": "word_perplexity"}])
    with pytest.raises(CoraxError, match=r"base: the harness stopped: OverflowError"):
        compare(models, folder / "harness.json", task)


@needs_harness
def test_parquet_gives_what_json_gives(comparison: ModuleType, models: dict[str, Path], folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [json.loads(line) for line in (SHIPPED / "colours.jsonl").read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), folder / "colours.parquet")
    files = {"data_files": {"test": "colours.parquet"}}
    other = write(folder, dataset_path="parquet", dataset_kwargs=files, task="parquet")
    plain, columns = compare(models, folder / "harness.json", folder / "colours.yaml", other)
    assert {**plain, "name": ""} == {**columns, "name": ""}


@needs_harness
def test_a_killed_job_leaves_nothing_half_written(models: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "harness.json"
    folders = ["--base", models["base"], "--tuned", models["tuned"]]
    command = stages.command("harness", *folders, "--harness.tasks", *TASKS, "--output", output)
    environment = {**stages.environment(), "PYTHONPATH": str(PACKAGES)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        lines = [next(line for line in process.stderr if line.startswith("harness base: "))]
        process.send_signal(signal.SIGKILL)
    assert lines and not output.exists() and not (tmp_path / "harness.manifest.json").exists()


def test_without_the_harness_it_says_what_is_missing(models: dict[str, Path], tmp_path: Path) -> None:
    folders = ["--base", models["base"], "--tuned", models["tuned"]]
    done = stages.run("harness", *folders, "--harness.tasks", TASKS[0], "--output", tmp_path / "harness.json")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: lm_eval: not installed here" in done.stderr
