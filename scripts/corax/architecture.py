"""Which of the two kinds of language model lies in a folder, and its context, from its configuration alone."""

from pathlib import Path
from typing import Any

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
    if "relative_attention_num_buckets" in config:
        return None
    found = config.get("max_position_embeddings", config.get("n_positions"))
    return found if isinstance(found, int) else None


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return read_object(path) if path.is_file() else {}
