"""Configuration is closed and frozen: what it does not know is an error that names the key."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from daemon.config import ENVIRONMENT_PREFIX, Settings, load_settings
from daemon.errors import ConfigError
from engines import Recipe
from models import MODEL_NAMES

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

EXAMPLE = Path(__file__).parents[1] / "deploy" / "ffedge.toml"
SMALLEST = "[model]\ninput_shape = [64]\nmax_classes = 10\n"
SECTIONS = {name: field.annotation for name, field in Settings.model_fields.items()}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in os.environ:
        if name.startswith(ENVIRONMENT_PREFIX):
            monkeypatch.delenv(name)


@pytest.fixture
def load(tmp_path):
    def load(text: str) -> Settings:
        path = tmp_path / "ffedge.toml"
        path.write_text(text)
        return load_settings(path)

    return load


def refused(load, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(text)


def test_two_keys_are_enough(load):
    settings = load(SMALLEST)
    assert settings.model.spec().to_json() == {
        "name": "mlp",
        "input_shape": (64,),
        "max_classes": 10,
        "hidden": (500, 500, 500),
    }
    assert settings.store.directory == Path("./var")
    assert settings.server.host == "127.0.0.1"


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_network_can_be_named_and_gives_its_description(load, name):
    text = "[model]\ninput_shape = [3, 32, 32]\nmax_classes = 4\n" + f'name = "{name}"\n'
    assert load(text).model.spec().name == name


def test_the_learner_is_told_its_recipe(load):
    recipe = load(SMALLEST + '[learner]\nmasters = "int16"\nfusion = "auto"\n').learner.recipe()
    assert recipe == Recipe(masters="int16", fusion="auto")


def test_the_example_lists_every_key_with_its_default(load):
    if not EXAMPLE.exists():
        pytest.skip(f"{EXAMPLE.name} is not written yet")
    assert load_settings(EXAMPLE).model_dump() == load(SMALLEST).model_dump()
    listed = {name: set(keys) for name, keys in tomllib.loads(EXAMPLE.read_text()).items()}
    assert listed == {name: set(section.model_fields) for name, section in SECTIONS.items()}


@pytest.mark.parametrize("key", ["input_shape", "max_classes"])
def test_a_missing_key_is_named(load, key):
    rest = "".join(line for line in SMALLEST.splitlines(True) if key not in line)
    refused(load, rest, f"key 'model.{key}' is missing")


def test_an_empty_file_says_what_is_missing(load):
    refused(load, "", "key 'model' is missing")


@pytest.mark.parametrize("section", SECTIONS)
def test_an_unknown_key_is_named(load, section):
    text = SMALLEST + ("" if section == "model" else f"[{section}]\n") + "tpyo = 1\n"
    refused(load, text, f"unknown key '{section}.tpyo'")


def test_an_unknown_section_is_named(load):
    refused(load, SMALLEST + "[servr]\nport = 1\n", "unknown key 'servr'")
    refused(load, "port = 1\n" + SMALLEST, "unknown key 'port'")


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("model", 'name = "cnn"'),
        ("model", "hidden = [0]"),
        ("store", "holdout_ratio = 0.0"),
        ("store", "holdout_ratio = 0.5"),
        ("store", "queue_samples = 0"),
        ("store", "max_bytes = 1048576"),
        ("store", "max_age_days = -1.0"),
        ("store", "max_samples = -1"),
        ("server", "port = 65536"),
        ("server", 'engine = "onnx"'),
        ("server", "threads = 1.5"),
        ("learner", "learning_rate = nan"),
        ("learner", "max_wait_seconds = 0"),
        ("learner", "new_ratio = 1.5"),
        ("learner", "seed = -1"),
        ("learner", "batch_samples = 1"),
        ("learner", "niceness = -20"),
        ("gate", "margin = nan"),
        ("gate", "margin = -0.1"),
        ("gate", "keep_versions = 1"),
        ("power", 'provider = "tegrastats"'),
        ("power", "interval_seconds = 0.01"),
        ("power", "interval_seconds = inf"),
        ("governor", "max_watts = -1.0"),
        ("governor", "max_duty = 0.0"),
        ("governor", "safe_duty = 1.5"),
        ("governor", "max_cpu_ratio = 0.0"),
        ("governor", "budget_steps = 1.5"),
        ("governor", 'hours = "22-6"'),
        ("governor", 'hours = "24:00-06:00"'),
        ("governor", 'hours = "06:00-06:00"'),
        ("log", 'level = "loud"'),
        ("log", "format = 1"),
    ],
)
def test_a_value_out_of_range_is_named(load, section, line):
    text = SMALLEST + ("" if section == "model" else f"[{section}]\n") + line + "\n"
    refused(load, text, f"key '{section}.{line.partition(' ')[0]}")


def test_hours_that_cannot_be_read_are_answered_with_an_example(load):
    for hours in ("22-6", "22:00-6:00", "22:00 - 06:00"):
        refused(load, SMALLEST + f'[governor]\nhours = "{hours}"\n', 'such as "22:00-06:00"')
    assert load(SMALLEST + '[governor]\nhours = "22:00-06:00"\n').governor.hours


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SMALLEST + "hidden = [64, 9]\n", r"\[model\]: hidden \[64, 9\] .* max_classes = 10"),
        (SMALLEST + "width = 0.5\n", "width is 0.5; it scales the channels of conv networks"),
        (SMALLEST + 'name = "resnet8"\n', "must be .channels, height, width. for resnet8"),
        (SMALLEST.replace("[64]", "[1, 2, 3, 4]"), "input_shape"),
        (SMALLEST.replace("[64]", "[]"), "input_shape"),
        (SMALLEST.replace("[64]", "[0]"), "input_shape"),
        (SMALLEST.replace("10", "1"), "max_classes"),
        # Learning would never begin.
        (SMALLEST + "[store]\nmax_samples = 127\n", r"max_samples is below .*block_samples, 128"),
        (SMALLEST + "[store]\nmax_class_samples = 12\n", "max_class_samples of all 10 .* below"),
        # Nothing could ever be swapped in.
        (SMALLEST + "[gate]\nmin_samples = 50\nmax_samples = 40\n", "min_samples.*max_samples"),
    ],
)
def test_values_that_do_not_go_together_are_named(load, text, message):
    refused(load, text, message)


def test_a_block_may_be_of_all_classes(load):
    assert load(SMALLEST + "[store]\nmax_class_samples = 13\n").store.max_class_samples == 13


@pytest.mark.parametrize("text", ["[[[", "\x00", "a = 1\na = 2\n"])
def test_a_file_that_is_not_toml_is_named(load, text):
    refused(load, text, r"ffedge\.toml")


def test_a_file_that_is_not_text_or_not_there_is_named(tmp_path):
    path = tmp_path / "ffedge.toml"
    with pytest.raises(ConfigError, match=r"no configuration file .*ffedge\.toml; copy"):
        load_settings(path)
    with pytest.raises(ConfigError, match="no configuration file"):
        load_settings(tmp_path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"ffedge\.toml"):
        load_settings(path)


def test_the_environment_comes_first(load, monkeypatch):
    monkeypatch.setenv("FFEDGE_SERVER__PORT", "9000")
    monkeypatch.setenv("FFEDGE_MODEL__HIDDEN", "[32, 16]")
    monkeypatch.setenv("FFEDGE_STORE__DIRECTORY", "/data")
    settings = load(SMALLEST + "[server]\nport = 1\nthreads = 3\n")
    assert (settings.server.port, settings.server.threads) == (9000, 3)
    assert settings.model.hidden == (32, 16)
    assert settings.model.input_shape == (64,)
    assert settings.store.directory == Path("/data")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("FFEDGE_SERVR__PORT", "1", "FFEDGE_SERVR__PORT .* section of model, store, server"),
        ("FFEDGE_PORT", "1", "FFEDGE_PORT"),
        ("FFEDGE_SERVER_PORT", "1", "FFEDGE_SERVER_PORT"),
        ("FFEDGE_SERVER", '{"port": 1}', "FFEDGE_SERVER"),
        ("ffedge_servr__port", "1", "ffedge_servr__port"),
        ("FFEDGE_SERVER__PROT", "1", "unknown key 'server.prot'"),
        ("FFEDGE_SERVER__PORT", "many", "key 'server.port'"),
        ("FFEDGE_SERVER__PORT__X", "1", "key 'server.port'"),
        ("FFEDGE_MODEL__INPUT_SHAPE", "[64", "model"),
        ("FFEDGE_MODEL__HIDDEN", "[2]", r"\[model\]: hidden \[2\]"),
    ],
)
def test_a_typo_in_the_environment_is_named(load, monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    refused(load, SMALLEST, message)


def test_settings_are_frozen(load):
    settings = load(SMALLEST)
    with pytest.raises(ValidationError, match="frozen"):
        settings.log = settings.log
    for section in SECTIONS:
        values = getattr(settings, section)
        for key in type(values).model_fields:
            with pytest.raises(ValidationError, match="frozen"):
                setattr(values, key, getattr(values, key))
