"""Settings of `detokenize`: downloaded or generated files to text."""

from typing import Literal

from pydantic import Field, model_validator

from corax.settings.base import Float, Settings

Format = Literal["hdf5", "jsonl", "parquet", "csv", "arrow", "json", "text"]

COLUMNS: dict[str, dict[str, str]] = {
    "completion": {"prompt_column": "prompt", "completion_column": "completion"},
    "alpaca": {"prompt_column": "instruction", "context_column": "input", "completion_column": "output"},
    "dolly": {"prompt_column": "instruction", "context_column": "context", "completion_column": "response"},
    "messages": {"messages_column": "messages"},
    "sharegpt": {"messages_column": "conversations"},
    "text": {"text_column": "text"},
}
"""The columns of each kind of record, by setting, and the names that they have unless the setting says otherwise."""
HDF5_COLUMNS = {"prompt_column": "state", "completion_column": "code"}


class DetokenizeSettings(Settings):
    """HDF5 token ids, JSON, Parquet, CSV, Arrow or plain text to the text that the model learns."""

    format: Literal["auto", Format] = "auto"
    """Format of the files: hdf5, jsonl, parquet, csv, arrow, json (one array of objects, or an object a line) or text
    (*.txt, a file a sample). auto: by their suffix, all of one format; json, and then text, where there is no other."""
    record: Literal["completion", "alpaca", "dolly", "messages", "sharegpt", "text"] = "completion"
    """What a row is: completion (prompt and completion), alpaca or dolly (instruction in the published prompt),
    messages (role and content), sharegpt (from and value), or text."""
    prompt_column: str | None = None
    """Column of prompts; default: state (hdf5), prompt (completion) or instruction (alpaca, dolly)."""
    context_column: str | None = None
    """Column of what an instruction refers to; default: input (alpaca) or context (dolly)."""
    completion_column: str | None = None
    """Column of completions; default: code (hdf5), completion, output (alpaca) or response (dolly)."""
    labels: list[str] = []
    """Names of the classes, where the column of completions has their numbers from 0, as in classification data."""
    messages_column: str | None = None
    """Column of conversations; default: messages, or conversations (sharegpt)."""
    text_column: str | None = None
    """Column of plain texts; default: text."""
    vocabulary: str = "quantum"
    """For HDF5: name of a task whose vocabulary to use, or path of a file {token: id} that ends in .json."""
    padding: Literal["auto", "right", "left"] = "auto"
    """For HDF5: side of <PAD> in data sets of rows × ids; auto: the side that most of a file's first rows have.
    Ragged data sets have no <PAD>."""
    deduplicate: bool = False
    """Keep only the first of identical samples of a shard (about 32 to 64 bytes of memory a sample)."""
    max_bad_share: Float = Field(0.0, ge=0, le=1)
    """Largest share of wrong rows that is skipped and reported; above it the stage stops."""
    split_column: str | None = None
    """Column of texts or whole numbers by whose hash rows are divided into parts; default: the prompt. Not for HDF5."""
    validation_share: Float = Field(0.01, ge=0, lt=0.5)
    """Share of prompts that become validation data, by a hash of the prompt, where the data has no parts."""
    test_share: Float = Field(0.01, ge=0, lt=0.5)
    """Share of prompts that become test data, by a hash of the prompt, where the data has no parts."""

    @model_validator(mode="after")
    def _columns_of_the_record(self) -> "DetokenizeSettings":
        own = COLUMNS[self.record]
        for key in sorted({key for keys in COLUMNS.values() for key in keys}):
            value = getattr(self, key)
            if value is not None and key not in own:
                raise ValueError(f"{key} does not belong to record {self.record}, which has {', '.join(own)}")
            if value == "":
                raise ValueError(f"{key} is empty, allowed: the name of a column")
        if self.labels and "completion_column" not in own:
            raise ValueError(f"labels do not belong to record {self.record}, which has no column of completions")
        if "" in self.labels or len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels are {self.labels}, allowed: names that are different and not empty")
        return self

    def columns(self, format: Format) -> dict[str, str]:
        """The record's columns in a file of `format`: the setting's key and the column's name."""
        defaults = HDF5_COLUMNS if format == "hdf5" else COLUMNS[self.record]
        return {key: getattr(self, key) or name for key, name in defaults.items()}
