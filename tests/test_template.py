"""The template: exact ids, text that spells special tokens, padding, unusable tokenizers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from corax.errors import CoraxError
from corax.template import Template

HEADERS = ("{quantum state}", "{code}")
FLAVOURS: tuple[tiny.Flavour, ...] = get_args(tiny.Flavour)
EXPECTED = {
    "llama3": "<|begin_of_text|><|start_header_id|>{quantum state}<|end_header_id|>P"
    "<|start_header_id|>{code}<|end_header_id|>C<|end_of_text|>",
    "chatml": "<|im_start|>{quantum state}\nP<|im_end|>\n<|im_start|>{code}\nC<|im_end|>",
    "plain": "<s>{quantum state}\nP\n{code}\nC</s>",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {flavour: tiny.tokenizer_folder(root / flavour, flavour) for flavour in FLAVOURS}


@pytest.fixture(scope="module")
def templates(folders: dict[str, Path]) -> dict[str, Template]:
    return {flavour: Template(folder, *HEADERS) for flavour, folder in folders.items()}


def shown(folder: Path, ids: list[int]) -> str:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return str(tokenizer.decode(ids, skip_special_tokens=False))


def test_exact_llama3_ids_of_the_specification(tmp_path: Path) -> None:
    """206 ids of the original fine-tuning, by the entries of the real vocabulary that this text needs."""
    excerpt = json.loads((tiny.DATA.parent / "llama3_excerpt.json").read_text())
    example = json.loads((tiny.DATA / "tokens_ghz.json").read_text())
    # Byte-level BPE writes a space as "Ġ" and a newline as "Ċ".
    spell = str.maketrans(" \n", "ĠĊ")
    vocabulary = {token.translate(spell): number for token, number in excerpt["vocabulary"].items()}
    merges = [(left.translate(spell), right.translate(spell)) for left, right in excerpt["merges"]]
    special = {128000: "<|begin_of_text|>", 128001: "<|end_of_text|>"}
    special |= {128002: "<|reserved_special_token_0|>", 128006: "<|start_header_id|>", 128007: "<|end_header_id|>"}
    tokenizer = Tokenizer(models.BPE(vocabulary | {name: number for number, name in special.items()}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(tiny.LLAMA3_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special.values()])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end_of_text|>"}))
    template = Template(tmp_path, *HEADERS)

    prompt, completion = example["text"].split("<|end_header_id|>")[1:]
    prompt, completion = prompt.split("<|start_header_id|>")[0], completion.removesuffix("<|end_of_text|>")
    ids, ((prompt_length, _),) = template.row([(0, prompt), (1, completion)])
    assert ids == example["llama3_ids"]
    assert ids[:prompt_length] == template.prompt_ids(prompt)
    assert ids[prompt_length - 1] == 128007 and ids[prompt_length] == 68
    assert (template.end_id, template.pad_id) == (128001, 128002)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_text_of_a_sample(flavour: str, folders: dict[str, Path], templates: dict[str, Template]) -> None:
    ids, ((prompt_length, end),) = templates[flavour].row([(0, "P"), (1, "C")])
    assert end == len(ids)
    assert shown(folders[flavour], ids) == EXPECTED[flavour]
    assert shown(folders[flavour], ids[prompt_length:]) == "C" + EXPECTED[flavour].rpartition("C")[2]


@settings(max_examples=60)
@given(data=st.data())
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_any_text_is_text(flavour: str, templates: dict[str, Template], data: st.DataObject) -> None:
    """Also text that spells special tokens: it adds no control id, and comes back exactly."""
    template = templates[flavour]
    names = [*tiny.KINDS["llama3"].special, *tiny.KINDS["chatml"].special, *tiny.KINDS["plain"].special]
    piece = st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(names))
    text = st.lists(piece, max_size=6).map("".join)
    prompt, completion = data.draw(text), data.draw(text)
    in_template = [number for number in template.prompt_ids("") if number in template.control_ids]
    row, ((start, _),) = template.row([(0, prompt), (1, completion)])
    assert row[:start] == template.prompt_ids(prompt)
    assert [number for number in row if number in template.control_ids] == [*in_template, template.end_id]
    assert template.decode_completion(row[start:]) == completion


@pytest.mark.parametrize(
    ("flavour", "pad", "end"),
    [
        ("llama3", "<|reserved_special_token_0|>", "<|end_of_text|>"),
        ("chatml", "<|endoftext|>", "<|im_end|>"),  # its own padding token is its end token, as in SmolLM2-Instruct
        ("plain", "<pad>", "</s>"),
    ],
)
def test_padding_is_not_the_end(flavour: str, pad: str, end: str, templates: dict[str, Template]) -> None:
    facts = templates[flavour].facts
    assert (facts["pad"]["token"], facts["end"]["token"]) == (pad, end)
    assert facts["pad"]["id"] == templates[flavour].pad_id != templates[flavour].end_id == facts["end"]["id"]


def test_completion_stops_at_the_first_end_and_shows_other_special_tokens(templates: dict[str, Template]) -> None:
    template = templates["llama3"]
    ids, ((length, _),) = template.row([(0, ""), (1, "e(+1,2)")])
    start = template.facts["header_start"]["id"]
    assert template.decode_completion([start, *ids[length:], *ids[length:]]) == "<|start_header_id|>e(+1,2)"
    assert template.decode_completion(ids[length:-1]) == "e(+1,2)"


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_truncation_padding_and_unflagged_special_tokens_do_no_harm(folders: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folders["plain"] / "tokenizer.json"))
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=40, pad_id=2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    edit(
        tmp_path / "tokenizer.json", lambda content: [entry.update(special=False) for entry in content["added_tokens"]]
    )
    config = json.loads((folders["plain"] / "tokenizer_config.json").read_text())
    config["eos_token"] = {"content": "</s>", "special": True}  # the form of older versions
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    sample = [(0, "a</s>b" + tiny.texts()[0]), (1, tiny.texts()[1])]
    own, plain = Template(tmp_path, *HEADERS), Template(folders["plain"], *HEADERS)
    assert own.row(sample) == plain.row(sample)
    assert own.facts == plain.facts


def without_special(*names: str) -> Callable[[dict[str, Any]], object]:
    def change(content: dict[str, Any]) -> None:
        content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["content"] not in names]

    return change


BAD_TOKENIZERS: dict[str, tuple[tiny.Flavour, Callable[[Path], object], str]] = {
    "no tokenizer": ("llama3", lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json: missing"),
    "no tokenizer_config": ("llama3", lambda f: (f / "tokenizer_config.json").unlink(), "config.json: missing"),
    "damaged tokenizer": (
        "plain",
        lambda f: (f / "tokenizer.json").write_text('{"model": '),
        "tokenizer.json: no valid tokenizer",
    ),
    "binary tokenizer": (
        "plain",
        lambda f: (f / "tokenizer.json").write_bytes(b"\xff\xfe\x00"),
        "tokenizer.json: no valid tokenizer",
    ),
    "damaged config": (
        "plain",
        lambda f: (f / "tokenizer_config.json").write_text("{"),
        "tokenizer_config.json: no valid JSON",
    ),
    "config is a list": ("plain", lambda f: (f / "tokenizer_config.json").write_text("[]"), "must be a JSON object"),
    "no end token": (
        "plain",
        lambda f: edit(f / "tokenizer_config.json", lambda c: c.pop("eos_token")),
        "eos_token is missing",
    ),
    "end token is a number": (
        "plain",
        lambda f: edit(f / "tokenizer_config.json", lambda c: c.update({"eos_token": 2})),
        "eos_token is 2, allowed: the name of a token",
    ),
    "end token unknown": (
        "plain",
        lambda f: edit(f / "tokenizer_config.json", lambda c: c.update({"eos_token": "<end>"})),
        "'<end>' of tokenizer_config.json is not in the vocabulary",
    ),
    "nothing left for padding": (
        "plain",
        lambda f: (
            edit(f / "tokenizer_config.json", lambda c: c.update({"pad_token": "</s>"})),
            edit(f / "tokenizer.json", without_special("<pad>")),
        ),
        "no special token is left for padding, which must differ from the end '</s>'",
    ),
    "end token that data can spell": (
        "plain",
        lambda f: edit(f / "tokenizer_config.json", lambda c: c.update({"eos_token": "a"})),
        "the text 'a' in data would become the special token itself",
    ),
}


@pytest.mark.parametrize("case", BAD_TOKENIZERS)
def test_unusable_tokenizer(case: str, tmp_path: Path) -> None:
    flavour, spoil, message = BAD_TOKENIZERS[case]
    folder = tiny.tokenizer_folder(tmp_path / "model", flavour)
    spoil(folder)
    with pytest.raises(CoraxError) as error:
        Template(folder, *HEADERS)
    assert message in str(error.value) and str(folder) in str(error.value)
