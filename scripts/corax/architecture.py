"""Which of the two kinds of language model lies in a folder, from its configuration alone."""

from pathlib import Path

from corax.json_object import read_object


def is_encoder_decoder(folder: Path) -> bool:
    """Whether an encoder reads the prompt and a decoder writes the completion (T5), by `config.json`.

    False for a folder without one, such as a tokenizer alone. Raises CoraxError if it is damaged.
    """
    path = folder / "config.json"
    return path.is_file() and bool(read_object(path).get("is_encoder_decoder"))
