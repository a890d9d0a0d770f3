"""Settings that are valid and hardly meant: each is one line, and what is sensible has none."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.config import load_settings
from daemon.config_warnings import config_warnings
from tests.governor_fixtures import after, controller, well

SMALLEST = "[model]\ninput_shape = [64]\nmax_classes = 10\n"
MEMORY_BYTES = 8 << 30


@pytest.fixture
def warned(tmp_path):
    def warned(text: str) -> list[str]:
        path = tmp_path / "ffedge.toml"
        path.write_text(SMALLEST + text)
        return config_warnings(load_settings(path, {}), MEMORY_BYTES)

    return warned


SENSIBLE = {
    "defaults": "",
    "limits": '[governor]\nmax_watts = 12.0\nmax_celsius = 70.0\nhours = "22:00-06:00"\n'
    "min_free_bytes = 536870912\nmax_predict_seconds = 0.05\nbudget_seconds = 1800.0\n"
    "budget_joules = 9000.0\n",
    "no limits": "[governor]\nmax_watts = 0.0\nmax_celsius = 0.0\nmin_free_bytes = 0\n",
    "no power and none wanted": '[power]\nprovider = "none"\n[governor]\nbudget_seconds = 60.0\n',
    "nothing without power, of a source that is named": '[power]\nprovider = "ina3221"\n'
    "[governor]\nmax_watts = 12.0\nsafe_duty = 0.0\n",
    "nothing without power that is not wanted": "[governor]\nsafe_duty = 0.0\n",
    "a store that is large enough": "[store]\nmax_samples = 10000\nmax_class_samples = 1000\n",
}


@pytest.mark.parametrize("settings", SENSIBLE)
def test_what_is_sensible_has_no_warning(warned, settings):
    assert warned(SENSIBLE[settings]) == []


def test_every_setting_at_its_default_has_none():
    example = Path(__file__).parents[1] / "deploy" / "ffedge.toml"
    assert config_warnings(load_settings(example, {}), MEMORY_BYTES) == []


NONE = '[power]\nprovider = "none"\n[governor]\n'


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (NONE + "max_watts = 15.0", "no power for governor.max_watts: learning gets at most"),
        (NONE + "budget_joules = 9.0", "no power for governor.budget_joules: learning gets"),
        (NONE + "max_watts = 15.0\nsafe_duty = 0.0", "learning never runs; set power.provider"),
        (NONE + "max_celsius = 70.0", "no temperature for governor.max_celsius: it is not kept"),
        (
            "[governor]\nmax_watts = 15.0\nbudget_joules = 9.0\nsafe_duty = 0.0",
            "with governor.max_watts and governor.budget_joules: where no power can be read",
        ),
        ("[governor]\nmax_watts = 0.5", "0.5 W is below 1: learning stays paused; set watts"),
        ("[governor]\nmax_watts = 15000.0", "15000.0 W is above 1000: learning is never slowed"),
        ("[governor]\nmax_celsius = 8.5", "8.5 C is below 20: learning stays paused"),
        ("[governor]\nmax_celsius = 850.0", "850.0 C is above 120: learning is never slowed"),
        ("[governor]\nmin_free_bytes = 256", "256 B is below 1048576: learning is never slowed"),
        (
            f"[governor]\nmin_free_bytes = {9 << 30}",
            f"{9 << 30} B is above {MEMORY_BYTES}: learning stays paused",
        ),
        ("[governor]\nmax_predict_seconds = 5e-5", "is below 0.0001: learning stays paused while"),
        ("[governor]\nmax_predict_seconds = 50.0", "50.0 s is above 10: learning is never"),
        ("[governor]\nbudget_seconds = 7200.0", "7200.0 s is above 3600: learning is never"),
        ("[governor]\nbudget_seconds = 0.5", "0.5 s is below 1: hardly anything is learned"),
        ("[governor]\nbudget_steps = 31", "31 is below 32: less than one block is learned"),
        (
            "[learner]\nwrite_bytes_per_second = 1000",
            "some 6402000 bytes, every 1.8 hours; set it to 106700 or higher",
        ),
        (
            "[learner]\nblock_samples = 420000\n[store]\nmax_bytes = 33554432",
            "store.max_bytes = 33554432 keeps at most 419430 samples to learn, fewer than",
        ),
        ("[store]\nholdout_ratio = 1e-4", "about 200000 samples until gate.min_samples = 20"),
        ("[store]\nmax_samples = 5000", "5000 samples, fewer than the 10000 of learner.replay_s"),
    ],
)
def test_what_never_binds_or_always_does_is_one_line(warned, settings, told):
    (warning,) = warned(settings)
    assert told in warning
    assert "; set " in warning


@pytest.mark.parametrize(
    ("limit", "scoring"), [("max_samples = 150", 15), ("max_class_samples = 9", 9)]
)
def test_a_store_too_small_for_the_gate_is_named_beside_the_replay(warned, limit, scoring):
    gate, replay = warned(f"[learner]\nblock_samples = 8\n[store]\n{limit}\n")
    assert f"store.{limit} keeps about {scoring} samples that score" in gate
    assert "gate.min_samples = 20 are wanted" in gate
    assert "learner.replay_samples" in replay


def test_a_store_that_keeps_less_to_learn_than_a_block_is_named(warned):
    begins, _ = warned("[gate]\nmin_samples = 9\n[store]\nmax_samples = 130\n")
    assert "about 117 samples to learn, fewer than learner.block_samples = 128" in begins


@pytest.mark.parametrize(
    ("limits", "readings"),
    [
        ({"max_watts": 0.5}, {}),
        ({"max_celsius": 8.5}, {}),
        ({"min_free_bytes": 9 << 30}, {}),
        ({"max_predict_seconds": 5e-5}, {}),
        ({"max_watts": 15.0, "safe_duty": 0.0}, {"watts": None, "watts_known": False}),
    ],
)
def test_the_governor_does_pause_for_as_long_as_it_is_told(limits, readings):
    states = after(controller(**limits), *[well(**readings)] * 600)
    assert {found.state for found in states[1:]} == {"paused"}
