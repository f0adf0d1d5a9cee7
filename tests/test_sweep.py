"""A sweep: one run for each combination of its grid, under names that say which."""

import copy
import re
from math import prod
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corax import config
from corax.errors import CoraxError
from corax.settings.base import NAME_PATTERN
from corax.sweep import expand

CONFIG: dict[str, Any] = {
    "models": {"tiny": {"source": "local", "path": "."}, "big-2.5": {"source": "local", "path": "."}},
    "datasets": {"data": {"generate": {"samples": 100}}},
    "runs": {
        "plain": {"model": "tiny", "dataset": "data"},
        "chat": {"model": "tiny", "dataset": "data", "lora": {"lora_alpha": 8}, "train": {"seed": 3}},
    },
}


def checked(grid: dict[str, Any]) -> config.Config:
    values = copy.deepcopy(CONFIG)
    values["runs"]["chat"]["sweep"] = grid
    return config.check(values)


def test_names_and_values() -> None:
    runs = checked({"lora.r": [16, 64], "train.learning_rate": [2e-4, "1e-3", 0.05], "plan.num_train_epochs": [1]}).runs
    assert list(runs) == ["plain"] + [
        f"chat-r{r}-lr{rate}-epochs1" for r in (16, 64) for rate in ("2e-4", "1e-3", "0.05")
    ]
    run = runs["chat-r64-lr1e-3-epochs1"]
    assert (run.lora.r, run.train.learning_rate, run.plan.num_train_epochs) == (64, 1e-3, 1)
    assert (run.lora.lora_alpha, run.train.seed, run.lora.lora_dropout) == (8, 3, 0)
    assert not any(run.sweep for run in runs.values())


def test_models_and_words() -> None:
    runs = checked({"model": ["tiny", "big-2.5"], "train.lr_scheduler_type": ["linear"], "plan.packing": [False]}).runs
    assert list(runs)[1:] == [
        "chat-tiny-lr_scheduler_type-linear-packing-false",
        "chat-big-2.5-lr_scheduler_type-linear-packing-false",
    ]
    assert [run.model for run in runs.values()] == ["tiny", "tiny", "big-2.5"]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"lora.r": []}, "runs.chat.sweep.lora.r: list should have at least 1 item"),
        ({"lora.r": 16}, "runs.chat.sweep.lora.r: input should be a valid list, found 16"),
        ({"lora.r": [16, 16]}, "runs.chat.sweep.lora.r: a value is given twice, found r16, r16"),
        ({"train.learning_rate": [1e-3, "1e-3"]}, "a value is given twice, found lr1e-3, lr1e-3"),
        ({"r": [16]}, "runs.chat.sweep.r: allowed: model, dataset, or a section and its key, such as lora.r"),
        ({"lora.r.x": [16]}, "runs.chat.sweep.lora.r.x: allowed: model, dataset"),
        ({"dataset.shards": [1, 2]}, "runs.chat.sweep.dataset.shards: allowed: model, dataset, or a section"),
        (
            {"train.layers_kept": [None, 4]},
            "sweep.train.layers_kept.0: a number, a text, true or false is allowed, found None",
        ),
        (
            {"lora.target_modules": [["q_proj"]]},
            "sweep.lora.target_modules.0: a number, a text, true or false is allowed",
        ),
        ({"lora.rank": [16]}, "runs.chat-rank16.lora.rank: unknown key"),
        ({"lorra.r": [16]}, "runs.chat-r16.lorra: unknown key"),
        ({"lora.r": ["many"]}, "runs.chat-r-many.lora.r: input should be a valid integer"),
        ({"lora.r": [16, 0]}, "runs.chat-r0.lora.r: input should be greater than or equal to 1, found 0"),
        ({"model": ["huge"]}, "runs.chat-huge.model is 'huge', allowed: tiny, big-2.5"),
    ],
)
def test_what_is_wrong_is_one_line(grid: dict[str, Any], message: str) -> None:
    with pytest.raises(CoraxError) as error:
        checked(grid)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_name_that_is_taken() -> None:
    values = copy.deepcopy(CONFIG)
    values["runs"]["plain"]["sweep"] = {"lora.r": [4]}
    values["runs"]["plain-r4"] = values["runs"]["chat"]
    with pytest.raises(CoraxError, match="two runs would be called 'plain-r4'"):
        config.check(values)


values = st.floats(1e-12, 1e12) | st.integers(0, 10**9) | st.booleans() | st.text(max_size=8)
grids = st.dictionaries(st.sampled_from(["lora.r", "train.learning_rate", "plan.seed"]), st.lists(values, min_size=1))


@given(grids)
def test_every_combination_once(grid: dict[str, list[Any]]) -> None:
    run = {"model": "tiny", "dataset": "data", "lora": {"r": 1, "lora_alpha": 2}}
    before = copy.deepcopy(run)
    try:
        runs = expand({"demo": {**run, "sweep": grid}})
    except CoraxError:
        return
    assert run == before
    assert len(runs) == prod(map(len, grid.values()))
    assert len(set(map(repr, runs.values()))) == len(runs)
    assert all(re.match(NAME_PATTERN, name) for name in runs)
    for each in runs.values():
        assert each["lora"]["lora_alpha"] == 2
        for path, tried in grid.items():
            section, key = path.split(".")
            assert each[section][key] in tried
