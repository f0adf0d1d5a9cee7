"""The command line that all scripts share: options and settings are inverse, errors are one line."""

import argparse
import errno
import logging
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stages
from hypothesis import given
from hypothesis import strategies as st

from corax import cli
from corax.errors import CoraxError
from corax.settings.base import Settings
from corax.settings.detokenize import DetokenizeSettings
from corax.settings.evaluate import EvaluateSettings
from corax.settings.generate import GenerateSettings
from corax.settings.lora import LoraSettings
from corax.settings.plan import PlanSettings
from corax.settings.pretokenize import PretokenizeSettings
from corax.settings.sample import SampleSettings
from corax.settings.train import TrainSettings

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


@pytest.fixture(autouse=True)
def _own_log_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """`cli.run` replaces the handlers of the root logger."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logging.getLogger(), "level", logging.WARNING)


def there_and_back(values: Settings, section: str = "x") -> Settings:
    """The settings read from the options that they give."""
    parser = cli.parser("", **{section: type(values)})
    result: Settings = cli.settings(parser.parse_args(cli.options(values, section)), type(values), section)
    return result


@pytest.mark.parametrize(
    "values",
    [
        DetokenizeSettings(),
        EvaluateSettings(),
        GenerateSettings(configurations=["LONG_DEG1_2D_WEIGHTED_6-6-6", "SHORT_DEG2_3D_UNWEIGHTED_8-16-32"]),
        LoraSettings(target_modules=["q_proj", "v_proj"]),
        PlanSettings(max_steps=None, packing=False),
        PlanSettings(max_steps=7),
        SampleSettings(targets=False),
        TrainSettings(gradient_checkpointing=True),
    ],
)
def test_options_give_the_settings_back(values: Settings) -> None:
    assert there_and_back(values) == values


@given(TEXT, TEXT)
def test_any_text_survives_the_command_line(prompt: str, completion: str) -> None:
    values = PretokenizeSettings(prompt_header=prompt, completion_header=completion)
    assert there_and_back(values) == values
    assert shlex.split(shlex.join(cli.options(values))) == cli.options(values)


@given(st.floats(0, 1, exclude_min=True, exclude_max=True), st.floats(0, allow_infinity=False, exclude_min=True))
def test_every_digit_of_a_number_survives(beta: float, rate: float) -> None:
    values = TrainSettings(adam_beta1=beta, learning_rate=rate)
    assert there_and_back(values) == values


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lora.r", "0"], ["--lora.r", "greater than or equal to 1", "'0'"]),
        (["--lora.r", "many"], ["--lora.r", "valid integer", "'many'"]),
        (["--lora.r", "1.5"], ["--lora.r", "'1.5'"]),
        (["--lora.lora_dropout", "1"], ["--lora.lora_dropout", "less than 1"]),
        (["--lora.lora_alpha", "nan"], ["--lora.lora_alpha"]),
        (["--lora.lora_alpha", "inf"], ["--lora.lora_alpha", "finite"]),
        (["--lora.target_modules"], ["--lora.target_modules", "at least 1"]),
    ],
)
def test_wrong_value_names_the_option(options: list[str], words: list[str]) -> None:
    parser = cli.parser("", lora=LoraSettings)
    with pytest.raises(CoraxError) as error:
        cli.settings(parser.parse_args(options), LoraSettings, "lora")
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("option", ["--lora.rank", "--lora.lora_a", "--r"])
def test_unknown_and_abbreviated_options_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_code:
        cli.parser("", lora=LoraSettings).parse_args([option, "8"])
    assert exit_code.value.code == 2
    assert option in capsys.readouterr().err


def test_help_says_meaning_and_default() -> None:
    text = "".join(cli.parser("What it does.", lora=LoraSettings, train=TrainSettings).format_help().split())
    assert text.count("Whatitdoes.") == 1
    assert "--lora.rRRank.(default:16)" in text
    for section, model in (("lora", LoraSettings), ("train", TrainSettings)):
        for key, field in model.model_fields.items():
            assert f"--{section}.{key}" in text
            assert "".join((field.description or "").split()) in text


def fail(error: Exception) -> Callable[[argparse.Namespace], None]:
    def main(args: argparse.Namespace) -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (CoraxError("a.h5: row 3\n is wrong"), "error: a.h5: row 3 is wrong"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "error: /data/x: the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "error: output: the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/data/x"), "error: /data/x: Permission denied"),
        (OSError(errno.EROFS, "Read-only file system", "/data/x"), "error: /data/x: Read-only file system"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a.csv/x"), "error: a.csv/x: Not a directory"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "error: output: the disk is full"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_code:
        cli.run(fail(error), cli.parser(""), [])
    assert exit_code.value.code == cli.USER_ERROR
    assert capsys.readouterr().err.splitlines()[1:] == [line]


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), PermissionError(errno.EACCES, "Permission denied")])
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        cli.run(fail(error), cli.parser(""), [])


def test_first_line_repeats_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Any] = []
    parser = cli.parser("", lora=LoraSettings)
    arguments = ["--lora.target_modules", "a b", "it's", "--lora.r=4"]
    cli.run(seen.append, parser, arguments)
    first = capsys.readouterr().err.splitlines()[0]
    assert shlex.split(first)[:2] == ["$", "python"]
    assert shlex.split(first)[3:] == arguments
    assert cli.settings(seen[0], LoraSettings, "lora").target_modules == ["a b", "it's"]


def test_scripts_as_programs(tmp_path: Path) -> None:
    result = stages.run("verify", "nowhere", cwd=tmp_path)
    assert result.returncode == cli.USER_ERROR
    first, *rest = result.stderr.splitlines()
    assert shlex.split(first) == ["$", "python", str(stages.SCRIPTS / "verify.py"), "nowhere"]
    assert rest == ["error: nowhere: no such file or folder"]
    assert not result.stdout
