"""Conversations and plain text: the models' own formats, what carries loss, how it is stored and read."""

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stages
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from corax.artifact import Artifact, open_artifact
from corax.errors import CoraxError
from corax.plan import samples as plan_samples
from corax.pretokenize.rows import Rows, cut
from corax.pretokenize.stage import pretokenize
from corax.sample.prompts import read_test
from corax.settings.pretokenize import PretokenizeSettings
from corax.template import ROLES, Template, message_part
from corax.tokens import CONVERSATION_SCHEMA, SCHEMA, TokenShards
from corax.train.packs import flatten

Messages = list[dict[str, str]]

FLAVOURS: tuple[tiny.Flavour, ...] = get_args(tiny.Flavour)
SETTINGS = PretokenizeSettings()
SMOLLM2 = stages.REPOSITORY / "results" / "models" / "smollm2-135m"
OFFICIAL = {
    "llama3": "{% for message in messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "chatml": "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
}
"""The chat templates that Llama-3-Instruct and the ChatML models publish."""
CHAT = [
    {"role": "system", "content": "Answer in one line."},
    {"role": "user", "content": tiny.texts()[0]},
    {"role": "assistant", "content": tiny.texts()[1]},
    {"role": "user", "content": "Größer?\n\n  e(+1,2) ü🪶"},
    {"role": "assistant", "content": "e(+0+0*N,+1+0*N,0,0,1)"},
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for flavour in FLAVOURS:
        with Artifact(root / flavour, stage="download") as artifact:
            tiny.tokenizer_folder(artifact.path, flavour)
    return {flavour: root / flavour for flavour in FLAVOURS}


def pieces(messages: Messages) -> list[tuple[int, str]]:
    return [(message_part(message["role"], number), message["content"]) for number, message in enumerate(messages)]


def official_ids(folder: Path, template: str | None, messages: Messages, answer: bool) -> list[int]:
    """What transformers makes of a conversation, without the newline after a last `<|im_end|>`."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=answer)
    text = text if answer else text.removesuffix("\n")
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("flavour", OFFICIAL)
def test_format_of_the_family(flavour: str, models: dict[str, Path]) -> None:
    template = Template(models[flavour], "", "", "messages")
    ids, spans = template.row(pieces(CHAT))
    assert ids == official_ids(models[flavour], OFFICIAL[flavour], CHAT, answer=False)
    prompt = template.prompt_ids(json.dumps(CHAT[:-1]))
    assert prompt == official_ids(models[flavour], OFFICIAL[flavour], CHAT[:-1], answer=True) == ids[: spans[-1][0]]


@pytest.mark.skipif(not SMOLLM2.exists(), reason="SmolLM2 is not downloaded: `make demo` does that")
def test_format_of_a_real_model() -> None:
    template = Template(SMOLLM2, "", "", "messages")
    assert template.row(pieces(CHAT)).ids == official_ids(SMOLLM2, None, CHAT, answer=False)
    assert template.prompt_ids(json.dumps(CHAT[:-1])) == official_ids(SMOLLM2, None, CHAT[:-1], answer=True)


def test_a_plain_tokenizer_ends_the_turns_of_the_assistant(models: dict[str, Path]) -> None:
    template = Template(models["plain"], "", "", "messages")
    chat = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    assert template.decode(template.row(pieces(chat)).ids) == "<s>user\na\nassistant\nb</s>\nuser\nc"


text = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(["<|eot_id|>", "<|im_end|>", "</s>"])
message = st.tuples(st.sampled_from(ROLES), text.filter(bool))


@settings(max_examples=60)
@given(chat=st.lists(message, min_size=1, max_size=6))
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_loss_is_on_the_assistant_only(flavour: str, models: dict[str, Path], chat: list[tuple[str, str]]) -> None:
    template = Template(models[flavour], "", "", "messages")
    ids, spans = template.row([(message_part(role, number), content) for number, (role, content) in enumerate(chat)])
    answers = [content for role, content in chat if role == "assistant"]
    assert [template.decode(ids[start : end - 1]) for start, end in spans] == answers
    assert all(ids[end - 1] == template.end_id for _, end in spans)
    everyone_ends = flavour != "plain"
    assert ids.count(template.end_id) == (len(chat) if everyone_ends else len(answers))


def text_folder(path: Path, kind: str, train: list[Any], **other: list[Any]) -> Path:
    """A text artifact; a row is an object, or a line as it is."""
    with Artifact(path, stage="detokenize") as artifact:
        for part, rows in {"train": train, "validation": [], "test": [], **other}.items():
            lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
            (artifact.path / f"{part}.jsonl").write_text("".join(f"{line}\n" for line in lines))
        artifact.note(kind=kind)
    return path


def conversations(count: int) -> list[dict[str, Messages]]:
    """Conversations of 1 to 5 of CHAT's messages, shortened, with at least one answer."""
    chat = [{**message, "content": message["content"][:30]} for message in CHAT]
    random = np.random.default_rng(0)
    return [
        {"messages": [*chat[int(random.integers(3)) : 3], *chat[3 : int(random.integers(3, 6))]]} for _ in range(count)
    ]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_stored_and_read(flavour: str, models: dict[str, Path], tmp_path: Path) -> None:
    rows = conversations(1100)
    folder = tmp_path / "tokens"
    pretokenize(text_folder(tmp_path / "text", "messages", rows), models[flavour], folder, SETTINGS)
    assert pq.read_schema(folder / "train.parquet").equals(CONVERSATION_SCHEMA)
    template = Template(models[flavour], "", "", "messages")
    shards = TokenShards([folder], "train")
    ((lengths, target_counts),) = shards.lengths()
    for number, row in enumerate(rows):
        expected = template.row(pieces(row["messages"]))
        ids, targets = shards.row(0, number)
        assert ids.tolist() == expected.ids
        assert targets.tolist() == [position for span in expected.spans for position in range(*span)]
        assert (lengths[number], target_counts[number]) == (len(ids), len(targets))
    facts = open_artifact(folder).facts
    assert facts["completion_tokens"]["train"] == target_counts.sum()
    assert facts["template"]["kind"] == "messages"
    assert plan_samples.read([folder], "train").targets.tolist() == target_counts.tolist()
    batch = flatten([shards.row(0, 0), shards.row(0, 1)])
    assert len(batch.targets) == target_counts[:2].sum()
    assert batch.input_ids[0, batch.predicts + 1].tolist() == batch.targets.tolist()


def test_too_long_conversations_follow_the_choice_of_the_plan(tmp_path: Path) -> None:
    rows = [{"messages": CHAT[1:3]}, {"messages": CHAT[3:]}]
    model = tiny.model_folder(tmp_path / "model")
    pretokenize(
        text_folder(tmp_path / "text", "messages", rows, validation=rows[1:], test=rows[1:]),
        model,
        tmp_path / "000",
        SETTINGS,
    )
    ((lengths, _),) = TokenShards([tmp_path / "000"], "train").lengths()
    limit = int(lengths.max()) - 1
    options = (
        "--model",
        model,
        "--tokens",
        tmp_path / "000",
        "--output",
        tmp_path / "plan",
        "--plan.max_length",
        limit,
    )
    with pytest.raises(CoraxError, match=rf"000/train.parquet: row 0: {limit + 1} tokens, plan.max_length is {limit}"):
        stages.call("plan", *options)
    stages.call("plan", *options, "--plan.over_long", "drop")
    plan = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert plan["dropped"] == [{"part": "train", "shard": 0, "row": 0, "length": limit + 1}]
    assert pq.read_table(tmp_path / "plan" / "packs.parquet")["rows"].to_pylist() == [[1], [0]]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_plain_text(flavour: tiny.Flavour, models: dict[str, Path], tmp_path: Path) -> None:
    """Between begin and end token; all is learnt but what nothing could predict."""
    text = text_folder(tmp_path / "text", "text", [{"text": each} for each in [*tiny.texts(), "ü<|eot_id|>"]])
    pretokenize(text, models[flavour], tmp_path / "tokens", SETTINGS)
    assert pq.read_schema(tmp_path / "tokens" / "train.parquet").equals(SCHEMA)
    template = Template(models[flavour], "", "", "text")
    begin = template.parts[0].before
    assert [template.decode(begin), template.decode([template.end_id])] == {
        "llama3": ["<|begin_of_text|>", "<|end_of_text|>"],
        "chatml": ["", "<|im_end|>"],
        "plain": ["<s>", "</s>"],
    }[flavour]
    shards = TokenShards([tmp_path / "tokens"], "train")
    for row, each in enumerate([*tiny.texts(), "ü<|eot_id|>"]):
        ids, targets = shards.row(0, row)
        assert ids.tolist() == [*begin, *template.encode([each])[0], template.end_id]
        assert targets.tolist() == [*range(1, len(ids))]


@settings(max_examples=30)
@given(texts=st.lists(text.filter(bool), min_size=1, max_size=5), length=st.integers(2, 12))
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_text_in_pieces_is_learnt_once(flavour: str, models: dict[str, Path], texts: list[str], length: int) -> None:
    template = Template(models[flavour], "", "", "text")
    whole = [template.row([(0, each)]) for each in texts]
    ids = np.concatenate([np.array(row.ids, np.uint32) for row in whole])
    starts, ends = (np.array([row.spans[0][side] for row in whole]) for side in (0, 1))
    offsets = np.concatenate([[0], np.cumsum([len(row.ids) for row in whole])])
    pieces = cut(Rows(ids, offsets, starts, ends, np.arange(len(whole) + 1)), length)
    rows = [pieces.row(number) for number in range(len(pieces))]
    assert all(len(row) <= length for row, _ in rows)
    learnt = [token for row, spans in rows for start, end in spans for token in row[start:end]]
    assert learnt == [token for row in whole for token in row.ids[1:]]
    assert all(end > start for _, spans in rows for start, end in spans)


def test_only_plain_texts_are_cut(models: dict[str, Path], tmp_path: Path) -> None:
    pieces = PretokenizeSettings(chunk_length=8)
    texts = [{"text": each} for each in tiny.texts()]
    pretokenize(text_folder(tmp_path / "text", "text", texts), models["llama3"], tmp_path / "tokens", pieces)
    ((lengths, targets),) = TokenShards([tmp_path / "tokens"], "train").lengths()
    assert lengths.max() == 8
    assert (targets == lengths - 1).all()
    with pytest.raises(CoraxError, match=r"pretokenize\.chunk_length: only plain texts are cut.*are of kind messages"):
        pretokenize(text_folder(tmp_path / "chat", "messages", [GOOD]), models["llama3"], tmp_path / "x", pieces)


GOOD = {"messages": CHAT}
BAD = {
    "not a list": ("messages", {"messages": "hello"}, "messages is of type str, allowed: a list"),
    "no messages": ("messages", {"prompt": "p", "completion": "c"}, "messages is missing, found: prompt, completion"),
    "empty": ("messages", {"messages": []}, "no message of the assistant, so there is nothing to learn"),
    "no answer": ("messages", {"messages": CHAT[:2]}, "no message of the assistant, so there is nothing to learn"),
    "message is a string": ("messages", {"messages": ["hi"]}, "message 1: allowed is an object with role and content"),
    "no role": ("messages", {"messages": [{"content": "a"}]}, "message 1: role is missing, found: content"),
    "unknown role": (
        "messages",
        {"messages": [*CHAT, {"role": "tool", "content": "a"}]},
        "message 6: role is 'tool', allowed: system, user, assistant",
    ),
    "role is a list": ("messages", {"messages": [{"role": [], "content": ""}]}, "message 1: role is of type list"),
    "content is null": (
        "messages",
        {"messages": [{"role": "user", "content": None}]},
        "message 1: content is of type NoneType, allowed: a string",
    ),
    "empty answer": (
        "messages",
        {"messages": [{"role": "assistant", "content": ""}]},
        "message 1: content is empty, so there is nothing to learn",
    ),
    "lone surrogate": (
        "messages",
        '{"messages": [{"role": "assistant", "content": "\\ud83d"}]}',
        "message 1: content has a lone surrogate at character 0",
    ),
    "empty text": ("text", {"text": ""}, "text is empty, so there is nothing to learn"),
    "text is a number": ("text", {"text": 1}, "text is of type int, allowed: a string"),
    "another kind": ("text", GOOD, "text is missing, found: messages"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_line(case: str, models: dict[str, Path], tmp_path: Path) -> None:
    kind, bad, message = BAD[case]
    good = GOOD if kind == "messages" else {"text": "a"}
    text = text_folder(tmp_path / "text", kind, [good, good, bad, good])
    with pytest.raises(CoraxError) as error:
        pretokenize(text, models["llama3"], tmp_path / "tokens", SETTINGS)
    assert str(error.value).startswith(f"{text}/train.jsonl: line 3: {message}")
    assert not (tmp_path / "tokens").exists()


def test_kinds_that_do_not_fit(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CoraxError, match="kind 'images', allowed: completion, messages, text"):
        pretokenize(text_folder(tmp_path / "images", "images", [GOOD]), models["plain"], tmp_path / "x", SETTINGS)
    pretokenize(text_folder(tmp_path / "chat", "messages", [GOOD]), models["plain"], tmp_path / "a", SETTINGS)
    pretokenize(text_folder(tmp_path / "text", "text", [{"text": "a"}]), models["plain"], tmp_path / "b", SETTINGS)
    with pytest.raises(CoraxError, match="b: template differs from that of "):
        TokenShards([tmp_path / "a", tmp_path / "b"], "train")


@pytest.mark.parametrize("spans", [[], [1], [0, 2], [2, 2], [1, 2, 2, 3], [1, 3, 2, 4], [3, 5], [3, 2]])
def test_damaged_spans(spans: list[int], models: dict[str, Path], tmp_path: Path) -> None:
    """An odd number of positions, an empty stretch, one that does not follow the one before, one past the end."""
    pretokenize(text_folder(tmp_path / "text", "messages", [GOOD]), models["plain"], tmp_path / "good", SETTINGS)
    with Artifact(tmp_path / "tokens", stage="pretokenize") as artifact:
        rows = {"input_ids": [[7, 8, 9, 7], [7, 8, 9, 7]], "prompt_length": [1, 1], "length": [4, 4]}
        table = pa.table({**rows, "target_spans": [[1, 4], spans]}, schema=CONVERSATION_SCHEMA)
        for part in ("train", "validation", "test"):
            pq.write_table(table, artifact.path / f"{part}.parquet")
        artifact.note(**open_artifact(tmp_path / "good").facts)
    shards = TokenShards([tmp_path / "tokens"], "train")
    with pytest.raises(CoraxError, match=r"train\.parquet: row 1 has no target token or a wrong length"):
        shards.row(0, 0)


def test_what_is_asked_of_the_tuned_model(models: dict[str, Path], tmp_path: Path) -> None:
    """A conversation up to the last answer, which is the reference; a plain text's first half, in whole lines."""
    chat = [*CHAT, {"role": "user", "content": "Thanks"}]
    shard = text_folder(tmp_path / "chat", "messages", [GOOD], test=[{"messages": chat}])
    (prompt,) = read_test(shard)
    assert (prompt.name, prompt.reference) == ("chat:0", CHAT[4]["content"])
    template = Template(models["llama3"], "", "", "messages")
    ids, spans = template.row(pieces(chat))
    assert template.prompt_ids(prompt.text) == ids[: spans[-1][0]]
    texts = [{"text": each} for each in ("a", "ab", "def f():\n    return 1\n# end", "x" * 5000)]
    asked = [*read_test(text_folder(tmp_path / "text", "text", texts, test=texts))]
    assert [each.name for each in asked] == ["text:1", "text:2", "text:3"]
    assert [each.text for each in asked[:2]] == ["a", "def f():\n"]
    assert [each.reference for each in asked[:2]] == ["b", "    return 1\n# end"]
    assert [(len(each.text), len(each.reference or "")) for each in asked[2:]] == [(1000, 1000)]
