"""How a sample becomes token ids: the same object for training and for inference.

A sample is a sequence of pieces of text, each between ids that only the template places ("⏎" is a newline).

Prompt and completion, with a Llama-3 tokenizer (the format of the original fine-tuning; no newline after a header):

    <|begin_of_text|><|start_header_id|>HEADER<|end_header_id|>PROMPT
    <|start_header_id|>HEADER<|end_header_id|>COMPLETION<|end_of_text|>

(one line, shown as two); with a ChatML tokenizer; with any other between its begin token, if any, and its end token:

    <|im_start|>HEADER⏎PROMPT<|im_end|>⏎<|im_start|>HEADER⏎COMPLETION<|im_end|>
    HEADER⏎PROMPT⏎HEADER⏎COMPLETION

Messages, in the models' own chat formats; a role is a header, and a plain tokenizer ends the assistant's turns only:

    <|begin_of_text|><|start_header_id|>user<|end_header_id|>⏎⏎CONTENT<|eot_id|><|start_header_id|>assistant…
    <|im_start|>user⏎CONTENT<|im_end|>⏎<|im_start|>assistant⏎CONTENT<|im_end|>
    user⏎CONTENT⏎assistant⏎CONTENT

Plain text: between the tokenizer's own begin token, if any, and end token.

Prompt and completion with an encoder-decoder model (T5): what the encoder reads, then what the decoder writes. The
header of the prompt is the model's task prefix, such as "sst2 sentence:"; that of the completion has no place.

    HEADER PROMPT</s>
    COMPLETION</s>

Pieces are encoded one by one and joined as ids, so a prompt has the same ids whatever follows, and text that spells a
special token ("<|end_of_text|>") stays text. No content is trimmed and no system message is added, as the templates of
some models do.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from tokenizers import Tokenizer, models, normalizers

from corax.architecture import is_encoder_decoder
from corax.errors import CoraxError
from corax.json_object import read_object

Kind = Literal["completion", "messages", "text"]
"""What a sample is: prompt and completion, a conversation, or plain text."""
KINDS: tuple[Kind, ...] = get_args(Kind)
ROLES = ("system", "user", "assistant")
LLAMA3 = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>")
LLAMA3_END: Mapping[Kind, str] = {"completion": "<|end_of_text|>", "messages": "<|eot_id|>"}
CHATML = ("<|im_start|>", "<|im_end|>")


class Part(NamedTuple):
    """What the template puts around one piece of text, and whether the piece and the ids after it carry loss."""

    before: list[int]
    after: list[int]
    target: bool


class Row(NamedTuple):
    """A sample's ids, and (start, end) of each stretch of them that carries loss."""

    ids: list[int]
    spans: list[tuple[int, int]]


@dataclass(frozen=True)
class _Marks:
    """The names of the special tokens that a format places; None where it has none."""

    form: Literal["llama3", "chatml", "plain", "encoder-decoder"]
    begin: str | None
    header_start: str | None
    header_end: str | None
    end: str

    def names(self) -> list[str]:
        return [name for name in (self.begin, self.header_start, self.header_end, self.end) if name is not None]


class Template:
    """The template of the model in `folder` (its `tokenizer.json` and `tokenizer_config.json`) for one kind of sample.

    `parts` are the kinds of piece: of a completion prompt and completion, of a text the text; of messages each of
    ROLES as the first message, then each of ROLES as a later one. `end_id` closes what is learnt and is trained;
    `pad_id` fills batches and is never the end token, which would be masked with the padding; `control_ids` are the
    special tokens that only the template may place. `facts` (kind, format, headers, and id and name of begin,
    header_start, header_end, end, pad) describe it in manifests; `tokenizer` encodes pieces.

    Raises CoraxError if the folder has no usable tokenizer, no end token or no token left for padding.
    """

    def __init__(self, folder: Path, prompt_header: str, completion_header: str, kind: Kind = "completion") -> None:
        self.kind = kind
        self.tokenizer = _tokenizer(folder)
        special = _special_names(folder)
        marks = _marks(self.tokenizer, special, kind, folder)
        pad = _padding(self.tokenizer, special["pad_token"], marks, folder)
        ids = _reserve(self.tokenizer, [*marks.names(), pad], folder)
        self.end_id, self.pad_id, self.control_ids = ids[marks.end], ids[pad], sorted(set(ids.values()))

        roles = {key: getattr(marks, key) for key in ("begin", "header_start", "header_end", "end")} | {"pad": pad}
        headers = {"prompt_header": prompt_header, "completion_header": completion_header}
        if marks.form == "encoder-decoder":
            del headers["completion_header"]
        self.facts: dict[str, Any] = {
            "kind": kind,
            "format": marks.form,
            **(headers if kind == "completion" else {}),
            **{role: None if name is None else {"id": ids[name], "token": name} for role, name in roles.items()},
        }

        begin = [] if marks.begin is None else [ids[marks.begin]]
        end = [self.end_id]
        if kind == "text":
            self.parts = [Part(begin, end, target=True)]
        elif marks.form == "encoder-decoder":
            self.parts = [Part(begin + self._encode(prompt_header), end, target=False), Part([], end, target=True)]
        elif kind == "completion":
            prompt, completion = (self._header(marks, ids, header) for header in headers.values())
            between = {"llama3": [], "chatml": [*end, *self._encode("\n")], "plain": self._encode("\n")}[marks.form]
            self.parts = [Part(begin + prompt, between, target=False), Part(completion, end, target=True)]
        else:
            separator = [] if marks.form == "llama3" else self._encode("\n")
            self.parts = [
                Part(before + self._header(marks, ids, role), end if learnt or marks.form != "plain" else [], learnt)
                for before in (begin, separator)
                for role, learnt in ((role, role == "assistant") for role in ROLES)
            ]

    def prompt_ids(self, prompt: str) -> list[int]:
        """The ids up to where the model writes: what it is given at inference.

        `prompt` is the prompt of a completion, the beginning of a text, or the JSON list of the messages before the
        assistant's turn.
        """
        if self.kind == "messages":
            messages = json.loads(prompt)
            pieces = [
                (message_part(message["role"], number), message["content"]) for number, message in enumerate(messages)
            ]
            answer = self.parts[message_part("assistant", len(pieces))]
        else:
            pieces = [(0, prompt)]
            answer = self.parts[-1]
        ids = self.row(pieces).ids
        return ids + answer.before if self.kind != "text" else ids[:-1]

    def row(self, pieces: Sequence[tuple[int, str]]) -> Row:
        """The ids of a sample; a piece is (its number in `parts`, its text)."""
        return self.join([number for number, _ in pieces], self.encode([text for _, text in pieces]))

    def join(self, numbers: Sequence[int], encoded: Sequence[Sequence[int]]) -> Row:
        """The ids of a sample whose pieces, `numbers` in `parts`, are encoded already."""
        row = Row([], [])
        for number, ids in zip(numbers, encoded, strict=True):
            part = self.parts[number]
            row.ids.extend(part.before)
            start = len(row.ids)
            row.ids.extend([*ids, *part.after])
            if part.target:
                row.spans.append((max(start, 1), len(row.ids)))  # nothing could predict the very first token
        return row

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of pieces of text, without those of the template."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens show as their names."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

    def decode_completion(self, ids: Sequence[int]) -> str:
        """The text of a completion up to its first end token; other special tokens show as their names."""
        kept = list(ids)
        return self.decode(kept[: kept.index(self.end_id)] if self.end_id in kept else kept)

    def _header(self, marks: _Marks, ids: Mapping[str, int], name: str) -> list[int]:
        """The ids that announce what follows: the role of a message, the header of a prompt or completion."""
        start = [] if marks.header_start is None else [ids[marks.header_start]]
        if marks.header_end is None:
            return start + self._encode(name + "\n")
        newlines = self._encode("\n\n") if self.kind == "messages" else []
        return start + self._encode(name) + [ids[marks.header_end]] + newlines

    def _encode(self, text: str) -> list[int]:
        return self.encode([text])[0]


def message_part(role: str, number: int) -> int:
    """Where in `Template.parts` a message (`number` from 0 in its conversation) finds what surrounds it."""
    return ROLES.index(role) + (len(ROLES) if number else 0)


def _tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer without the cutting and padding that its file may ask for."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CoraxError(f"{path}: missing: a model folder needs its tokenizer")
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises nothing more specific
        raise CoraxError(f"{path}: no valid tokenizer: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _special_names(folder: Path) -> dict[str, str | None]:
    """bos_token, eos_token and pad_token of tokenizer_config.json; None where not given."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        raise CoraxError(f"{path}: missing: a model folder needs its tokenizer")
    config = read_object(path)
    result: dict[str, str | None] = {}
    for key in ("bos_token", "eos_token", "pad_token"):
        value = config.get(key)
        name = value.get("content") if isinstance(value, dict) else value
        if name is not None and not isinstance(name, str):
            raise CoraxError(f"{path}: {key} is {name!r}, allowed: the name of a token")
        result[key] = name
    return result


def _marks(tokenizer: Tokenizer, special: dict[str, str | None], kind: Kind, folder: Path) -> _Marks:
    """The format that the tokenizer's special tokens allow, the richest first; text needs begin and end only."""
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    bos, eos = special["bos_token"], special["eos_token"]
    begin = None if bos in CHATML else bos
    if is_encoder_decoder(folder):
        if kind != "completion":
            raise CoraxError(f"{folder}: an encoder-decoder model learns samples of the kind completion, found {kind}")
        if eos is not None:
            return _Marks("encoder-decoder", begin, None, None, eos)
    if kind != "text" and added.issuperset((*LLAMA3, LLAMA3_END[kind])):
        return _Marks("llama3", *LLAMA3, LLAMA3_END[kind])
    if kind != "text" and added.issuperset(CHATML):
        return _Marks("chatml", begin, CHATML[0], None, CHATML[1])
    if eos is None:
        raise CoraxError(f"{folder / 'tokenizer_config.json'}: eos_token is missing, so no completion could end")
    return _Marks("plain", begin, None, None, eos)


def _padding(tokenizer: Tokenizer, own: str | None, marks: _Marks, folder: Path) -> str:
    """The tokenizer's padding token, or else its first special token, that the template does not place."""
    added = tokenizer.get_added_tokens_decoder()
    candidates = [own, *(added[number].content for number in sorted(added) if added[number].special)]
    for name in candidates:
        if name is not None and name not in marks.names():
            return name
    raise CoraxError(f"{folder}: no special token is left for padding, which must differ from the end {marks.end!r}")


def _reserve(tokenizer: Tokenizer, names: list[str], folder: Path) -> dict[str, int]:
    """The ids of special tokens, after making sure that no text, not even their own names, is encoded as one."""
    path = folder / "tokenizer.json"
    ids = {}
    for name in names:
        number = tokenizer.token_to_id(name)
        if number is None:
            raise CoraxError(f"{path}: the special token {name!r} of tokenizer_config.json is not in the vocabulary")
        ids[name] = int(number)
    tokenizer.add_special_tokens(names)
    tokenizer.encode_special_tokens = True
    if isinstance(tokenizer.model, models.Unigram):
        _break_names(tokenizer, names)
    for name in names:
        if ids[name] in tokenizer.encode(name, add_special_tokens=False).ids:
            raise CoraxError(f"{path}: the text {name!r} in data would become the special token itself")
    return ids


def _break_names(tokenizer: Tokenizer, names: list[str]) -> None:
    """Let text that spells a special token have a space in it ("< /s>").

    A Unigram vocabulary has its special tokens as pieces like any other, and would take them for such a text.
    """
    broken = [normalizers.Replace(name, f"{name[0]} {name[1:]}") for name in names]
    own = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
    tokenizer.normalizer = normalizers.Sequence([*own, *broken])
