"""The fast tokenizer is used where it is exact, gives the reference's ids there, and a difference stops the stage."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stages
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from corax.artifact import Artifact, open_artifact
from corax.errors import CoraxError
from corax.pretokenize import encoders
from corax.pretokenize.contract import Contract
from corax.pretokenize.encoders import Encoder, Fast, Flat, Reference
from corax.pretokenize.rows import join
from corax.pretokenize.samples import read_samples
from corax.pretokenize.stage import pretokenize, write_shard
from corax.settings.pretokenize import PretokenizeSettings
from corax.template import Template
from corax.tokens import TokenShards

SETTINGS = PretokenizeSettings()
SMOLLM2 = stages.REPOSITORY / "results" / "models" / "smollm2-135m"
PREFIX_SPACE = '{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}'
GPT2_STEPS = pre_tokenizers.ByteLevel(add_prefix_space=False)
SENTENCEPIECE = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]


def folder(path: Path, tokenizer: Tokenizer) -> Path:
    """A model artifact with this tokenizer."""
    with Artifact(path, stage="download") as artifact:
        tokenizer.save(str(artifact.path / "tokenizer.json"))
        names = {"bos_token": "<s>", "eos_token": "</s>"} if tokenizer.token_to_id("<s>") is not None else {}
        (artifact.path / "tokenizer_config.json").write_text(json.dumps(names))
    return path


def gpt2(**model: Any) -> Tokenizer:
    """BPE on bytes with GPT-2's splitting, as SmolLM2 and many others have it."""
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer, tokenizer.decoder = GPT2_STEPS, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(tiny.texts(), trainer)
    return tokenizer


def changed(tokenizer: Tokenizer, **parts: object) -> Tokenizer:
    """The tokenizer with some keys of its file replaced."""
    return Tokenizer.from_str(json.dumps(json.loads(tokenizer.to_str()) | parts))


def sentencepiece() -> Tokenizer:
    """BPE on characters with bytes for the unknown, as Llama-2 and Mistral have it."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.normalizer = SENTENCEPIECE
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(tiny.texts(), trainer)
    return tokenizer


def digits_apart() -> Tokenizer:
    """As the newest families have it: digits one by one, letters with their marks, added tokens that are no control."""
    tokenizer = gpt2(ignore_merges=True)
    pattern = Regex(r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    steps = [pre_tokenizers.Split(pattern, "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("<|tool|>", special=True)])
    return tokenizer


FAST: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": gpt2,
    "digits apart": digits_apart,
    "llama3": lambda: tiny.tokenizer("llama3"),
    "chatml": lambda: tiny.tokenizer("chatml"),
}
SLOW: dict[str, Callable[[], Tokenizer]] = {
    "another splitting": lambda: tiny.tokenizer("plain"),
    "sentencepiece": sentencepiece,
    "normalised": lambda: changed(gpt2(), normalizer={"type": "NFC"}),
    "prefix space": lambda: changed(gpt2(), pre_tokenizer=json.loads(PREFIX_SPACE)),
    "dropout": lambda: gpt2(dropout=0.1),
    "no splitting": lambda: changed(gpt2(), pre_tokenizer=None),
}


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Template]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: Template(folder(root / name, make()), "state", "code") for name, make in (FAST | SLOW).items()}


def same(encoder: Encoder, template: Template, texts: Sequence[str]) -> None:
    """The encoder gives the reference's ids, and these decode to the texts."""
    ids, offsets = encoder.encode(texts)
    for number, (text, expected) in enumerate(zip(texts, template.encode(texts), strict=True)):
        found = ids[offsets[number] : offsets[number + 1]].tolist()
        assert found == expected and template.decode(found) == text
        assert not set(found) & set(template.control_ids)


character = st.characters(exclude_categories=["Cs"])
look_alike = st.sampled_from([*SPECIAL, *tiny.KINDS["llama3"].special, *tiny.KINDS["chatml"].special, "<|eot_", "id|>"])
long = st.tuples(st.sampled_from(["a", "0", " ", "\n", "=", "é", "\t ", "ab1", "\U0001f9ff"]), st.integers(100, 3000))
piece = st.one_of(
    st.text(character), look_alike, st.sampled_from(["\n", "\r\n", " \n", "'S", "ſ"]), long.map(lambda x: x[0] * x[1])
)


@settings(max_examples=150)
@given(text=st.lists(piece, max_size=8).map("".join))
@pytest.mark.parametrize("name", FAST)
def test_any_text(name: str, templates: dict[str, Template], text: str) -> None:
    """All of Unicode, special tokens spelt out, lone newlines, very long words."""
    template = templates[name]
    encoder = cached(template)
    assert isinstance(encoder, Fast)
    same(encoder, template, [text, tiny.texts()[0], text + text[::-1]])


@pytest.mark.parametrize("name", SLOW)
def test_the_reference_serves_where_the_fast_one_is_not_known_to_be_exact(
    name: str, templates: dict[str, Template]
) -> None:
    encoder = cached(templates[name])
    assert isinstance(encoder, Reference)
    if name != "dropout":  # which is random
        ids, offsets = encoder.encode(tiny.texts())
        assert np.split(ids, offsets[1:-1])[3].tolist() == templates[name].encode(tiny.texts())[3]


@cache
def cached(template: Template) -> Encoder:
    return encoders.choose(template)


@pytest.mark.skipif(not SMOLLM2.exists(), reason="SmolLM2 is not downloaded: `make demo` does that")
def test_a_real_tokenizer() -> None:
    template = Template(SMOLLM2, "state", "code")
    encoder = encoders.choose(template)
    assert isinstance(encoder, Fast)
    sources = [path.read_text() for path in sorted(stages.SCRIPTS.rglob("*.py"))]
    same(encoder, template, [*tiny.texts(), *sources, "<|im_end|>", "Größe 象 🪶\r\n\n  x", ""])


def jsonl(path: Path, texts: Sequence[tuple[str, str]]) -> Path:
    lines = (json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in texts)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


USUAL = [("+1[axbx]", "e(+0+0*N,+1+0*N,0,0,1)\nN")] * 250


def compared(template: Template, path: Path) -> list[int]:
    """The lines that are compared with the reference."""
    found = []
    for samples, texts in read_samples(path, template):
        found += [int(row) + samples.line for row in Contract(template)._compared(samples, texts)]
    return found


def test_which_rows_are_compared(templates: dict[str, Template], tmp_path: Path) -> None:
    """One line in a hundred, and all that look unusual."""
    template = templates["llama3"]
    assert compared(template, jsonl(tmp_path / "usual.jsonl", USUAL)) == [1, 101, 201]
    odd = ["ä", "\t", "\x7f", "\x00", "a" * 64, " " * 64, "-" * 64, "7" * 64, "<|eot_id|>", "\u2028"]
    texts = [*USUAL[:1], *((word, "c") for word in odd), *(("p", f"c {word} c") for word in odd), ("p", "a" * 63)]
    assert compared(template, jsonl(tmp_path / "odd.jsonl", texts)) == [*range(1, 22)]


class Wrong(Reference):
    """Differs where a text has a "Z"."""

    name = "fastokens"

    def encode(self, texts: Sequence[str]) -> Flat:
        ids, offsets = super().encode(texts)
        for number, text in enumerate(texts):
            if "Z" in text:
                ids[offsets[number]] += 1
        return ids, offsets


@pytest.mark.parametrize(("row", "text"), [(0, "Z"), (200, "Z"), (37, "Zé")])
def test_a_difference_stops_the_stage(row: int, text: str, templates: dict[str, Template], tmp_path: Path) -> None:
    rows = [*USUAL]
    rows[row] = (text, "c")
    for part in ("train", "validation", "test"):
        jsonl(tmp_path / f"{part}.jsonl", rows if part == "validation" else [])
    template = templates["llama3"]
    message = rf"validation\.jsonl: line {row + 1}: tokenized wrongly: the ids differ from those of `tokenizers`"
    with pytest.raises(CoraxError, match=message), Artifact(tmp_path / "tokens", stage="pretokenize") as artifact:
        write_shard(tmp_path, artifact, template, Wrong(template))
    assert not (tmp_path / "tokens").exists()


def test_both_give_the_same_rows(templates: dict[str, Template], tmp_path: Path) -> None:
    template = templates["llama3"]
    path = jsonl(tmp_path / "x.jsonl", [*zip(tiny.texts(), reversed(tiny.texts()), strict=True), ("", "ü")])
    ((samples, _),) = read_samples(path, template)
    fast, reference = (
        join(template, samples, encoder.encode(samples.texts)) for encoder in (cached(template), Reference(template))
    )
    assert [fast.row(row) for row in range(len(fast))] == [reference.row(row) for row in range(len(reference))]


def test_a_byte_that_the_tokenizer_lacks_is_named(tmp_path: Path) -> None:
    """`tokenizers` leaves such characters out without a word, which would change the text."""
    content = json.loads(gpt2().to_str())
    for byte_of_e_acute in "Ã©":  # as byte-level BPE writes them
        del content["model"]["vocab"][byte_of_e_acute]
    model = folder(tmp_path / "model", Tokenizer.from_str(json.dumps(content)))
    with Artifact(tmp_path / "text", stage="detokenize") as artifact:
        jsonl(artifact.path / "train.jsonl", [*USUAL, ("p", "é"), *USUAL])
        for part in ("validation", "test"):
            jsonl(artifact.path / f"{part}.jsonl", [])
    with pytest.raises(CoraxError, match=r"train\.jsonl: line 251: tokenized wrongly: "):
        pretokenize(tmp_path / "text", model, tmp_path / "tokens", SETTINGS)


def test_facts_say_which_served(tmp_path: Path) -> None:
    with Artifact(tmp_path / "text", stage="detokenize") as artifact:
        for part in ("train", "validation", "test"):
            jsonl(artifact.path / f"{part}.jsonl", USUAL if part == "train" else [])
    for make, name, rows in ((gpt2, "fastokens", 3), (sentencepiece, "tokenizers", 250)):
        output = tmp_path / f"tokens-{name}"
        pretokenize(tmp_path / "text", folder(tmp_path / name, make()), output, SETTINGS)
        facts = open_artifact(output).facts
        assert (facts["tokenizer"], facts["compared_rows"]) == (name, rows)
    assert len(TokenShards([tmp_path / "tokens-fastokens"], "train").lengths()[0][0]) == 250
