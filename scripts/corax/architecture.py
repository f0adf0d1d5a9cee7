"""Which of the two kinds of language model lies in a folder, and its context, from its configuration alone."""

from pathlib import Path
from typing import Any

from corax.errors import CoraxError
from corax.json_object import read_object


def is_encoder_decoder(folder: Path) -> bool:
    """Whether an encoder reads the prompt and a decoder writes the completion (T5), by `config.json`.

    False for a folder without one, such as a tokenizer alone. Raises CoraxError if it is damaged.
    """
    return bool(_config(folder).get("is_encoder_decoder"))


def context(folder: Path) -> int | None:
    """The most tokens of one sample, by `config.json`; None where positions are relative (T5) or nothing is said.

    Raises CoraxError if it is damaged.
    """
    config = _config(folder)
    key = "max_position_embeddings" if "max_position_embeddings" in config else "n_positions"
    if "relative_attention_num_buckets" in config or config.get(key) is None:
        return None
    if not isinstance(config[key], int) or config[key] < 1:
        raise CoraxError(f"{folder / 'config.json'}: {key} is {config[key]!r}, allowed: a positive integer")
    return int(config[key])


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return read_object(path) if path.is_file() else {}
