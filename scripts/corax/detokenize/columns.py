"""What an error says of a column that a file or row lacks."""

from collections.abc import Iterable

from corax.settings.detokenize import COLUMNS


def missing(column: str, found: Iterable[str]) -> str:
    """That the column is missing, what is there instead, and the setting that would read it."""
    names = [str(name) for name in found]
    records = [record for record, columns in COLUMNS.items() if set(columns.values()) <= set(names)]
    keys = [key for columns in COLUMNS.values() for key, name in columns.items() if name == column]
    if records:
        advice = f"; detokenize.record may be {' or '.join(records)}"
    else:
        advice = f"; detokenize.{keys[0]} may name another" if names and keys else ""
    return f"is missing, found: {', '.join(names)[:200] or 'nothing'}{advice}"
