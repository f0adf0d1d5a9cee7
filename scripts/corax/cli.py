"""What every script shares: options made from settings, the first log line, errors of one line.

    def main(args): ...

    if __name__ == "__main__":
        parser = cli.parser(__doc__, lora=LoraSettings, train=TrainSettings)
        parser.add_argument("--output", required=True, type=Path)
        cli.run(main, parser)

A setting's option is its path in the configuration: `runs.demo.lora.r` is `--lora.r`.
"""

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from corax.errors import CoraxError, is_disk_full, is_no_place
from corax.settings.base import S, Settings, parse

USER_ERROR = 2
"""Exit code of a mistake that a retry cannot mend."""
PAUSED = 75
"""Exit code of a stage that a signal stopped at a point from which it can go on (EX_TEMPFAIL of sysexits.h)."""

log = logging.getLogger("corax")


def parser(doc: str | None, **groups: type[Settings]) -> argparse.ArgumentParser:
    """A parser whose help is the script's docstring, with the options of `groups` (section=model)."""
    result = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    for section, model in groups.items():
        add_settings(result, model, section)
    return result


def add_settings(parser: argparse.ArgumentParser, model: type[Settings], section: str = "") -> None:
    """Add one option for each key of `model`: `--section.key`, or `--key` without a section."""
    title = section or model.__name__
    group = parser.add_argument_group(f"{title} settings", (model.__doc__ or "").splitlines()[0])
    prefix = f"{section}." if section else ""
    for key, field in model.model_fields.items():
        if _is_constant(field):
            continue
        default = "required" if field.is_required() else f"default: {field.default}"
        many = "list" in str(field.annotation)
        group.add_argument(
            f"--{prefix}{key}",
            dest=f"{prefix}{key}",
            nargs="*" if many else None,
            metavar=key.upper(),
            default=argparse.SUPPRESS,
            help=f"{field.description or ''} ({default})".replace("%", "%%"),
        )


def settings(args: argparse.Namespace, model: type[S], section: str = "") -> S:
    """The options of `section` as settings; raises CoraxError naming the option that is wrong."""
    prefix = f"{section}." if section else ""
    given = {key: vars(args)[prefix + key] for key in model.model_fields if prefix + key in vars(args)}
    return parse(model, given, f"--{prefix}", strings=True)


def options(values: Settings, section: str = "") -> list[str]:
    """The command-line options that give `values` back: the inverse of `settings`."""
    prefix = f"--{section}." if section else "--"
    result: list[str] = []
    for key, value in values:
        if value is None or _is_constant(type(values).model_fields[key]):
            continue
        if isinstance(value, list | tuple):
            result += [prefix + key, *map(_to_text, value)]
        else:
            result.append(f"{prefix}{key}={_to_text(value)}")  # with `=`: the value may begin with a dash
    return result


def _is_constant(field: FieldInfo) -> bool:
    """Whether the key has one allowed value, such as the `source` that tells kinds of source apart."""
    return get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1


def _to_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def run(
    main: Callable[[argparse.Namespace], None],
    parser: argparse.ArgumentParser,
    argv: Iterable[str] | None = None,
) -> None:
    """Run a script: first line of the log is its command, a user's mistake is one line and exit 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    if "LOCAL_RANK" not in os.environ:  # the ranks of scripts/launch.py, whose log it is
        log.info("$ %s%s", os.environ.get("CORAX_CONTAINER", ""), shlex.join(["python", sys.argv[0], *arguments]))
    try:
        main(args)
    except CoraxError as error:
        sys.exit(_fail(error))
    except Exception as error:
        if is_no_place(error):
            sys.exit(_fail(f"{error.filename}: {error.strerror}"))
        if not is_disk_full(error):
            raise
        sys.exit(_fail(f"{getattr(error, 'filename', None) or 'output'}: the disk is full"))


def _fail(error: object) -> int:
    line = " ".join(str(error).split())
    print(f"error: {line}", file=sys.stderr, flush=True)
    return USER_ERROR
