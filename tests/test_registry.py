"""Which engine answers: by name or the first that opens, every refusal kept, nothing in silence."""

from __future__ import annotations

import sys

import pytest
import torch

from engines import (
    EngineFailedError,
    EngineUnavailableError,
    limit_threads,
    open_predict_engine,
    open_train_engine,
    registry,
)
from engines.torch_predict import TorchPredictEngine
from models import ModelSpec
from tests.contracts import exported


@pytest.fixture(autouse=True)
def _restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def refuse(options):
    raise ImportError("libnvinfer is not here")


def accept(options):
    return registry.Loaded(TorchPredictEngine, f"on {options.device}")


def opens_and_then_refuses(options):
    def open_version(weights):
        raise EngineUnavailableError("no engine for this network")

    return registry.Loaded(open_version, "nowhere")


def fails_now(options):
    def open_version(weights):
        raise EngineFailedError("both are in use")

    return registry.Loaded(open_version, "nowhere")


def use_engines(monkeypatch, **loaders):
    monkeypatch.setattr(registry, "_PREDICT_ENGINES", loaders)


def test_torch_opens_by_name():
    opened = open_predict_engine("torch")
    assert opened.name == "torch"
    assert opened.reason == "asked for by name; on cpu (asked for by name)"
    with opened.open(exported()) as engine:
        assert isinstance(engine, TorchPredictEngine)


def test_tensorrt_is_preferred_and_says_why_it_is_not_here(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycuda", None)
    opened = open_predict_engine()
    assert opened.name == "torch"
    where = "first in order that opened; on cpu (asked for by name)"
    assert opened.reason.startswith(f"{where}; tensorrt: pycuda unavailable: ")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        EngineUnavailableError, match="'tensorflow' is unknown; known: auto, tensorrt, torch"
    ):
        open_predict_engine("tensorflow")


def test_auto_takes_the_first_that_opens_and_says_who_refused(monkeypatch):
    use_engines(monkeypatch, fast=refuse, plain=accept, never=refuse)
    opened = open_predict_engine()
    assert opened.name == "plain"
    assert opened.reason == "first in order that opened; on cpu; fast: libnvinfer is not here"


def test_an_engine_asked_for_by_name_is_never_replaced(monkeypatch):
    use_engines(monkeypatch, fast=refuse, plain=accept)
    message = "no engine opened: fast: libnvinfer is not here$"
    with pytest.raises(EngineUnavailableError, match=message):
        open_predict_engine("fast")


def test_when_none_opens_every_refusal_is_told(monkeypatch):
    use_engines(monkeypatch, fast=refuse, other=refuse)
    with pytest.raises(EngineUnavailableError, match=r"fast: libnvinfer .*; other: libnvinfer"):
        open_predict_engine()


def test_an_engine_that_refuses_a_version_gives_way_for_good(monkeypatch, caplog):
    use_engines(monkeypatch, fast=opens_and_then_refuses, absent=refuse, plain=accept)
    opened = open_predict_engine()
    assert opened.name == "fast"
    for _ in range(2):
        with opened.open(exported()) as engine:
            assert isinstance(engine, TorchPredictEngine)
    assert opened.name == "plain"
    assert opened.reason == (
        "first in order that opened; on cpu; fast: no engine for this network; "
        "absent: libnvinfer is not here"
    )
    assert [record.message for record in caplog.records] == ["engine changed"]


def test_where_no_other_engine_opens_the_one_that_refused_stays(monkeypatch):
    use_engines(monkeypatch, fast=opens_and_then_refuses, plain=refuse)
    opened = open_predict_engine()
    for _ in range(2):
        with pytest.raises(EngineUnavailableError, match="no engine for this network"):
            opened.open(exported())
    assert (opened.name, opened.reason) == ("fast", "first in order that opened; nowhere")


def test_a_failure_of_the_moment_does_not_change_the_engine(monkeypatch):
    use_engines(monkeypatch, fast=fails_now, plain=accept)
    opened = open_predict_engine()
    with pytest.raises(EngineFailedError, match="both are in use"):
        opened.open(exported())
    assert opened.name == "fast"


def test_only_a_limit_changes_the_threads():
    torch.set_num_threads(2)
    open_predict_engine("torch")
    open_train_engine(ModelSpec("mlp", (2,), 2, (2,)), seed=0)
    assert torch.get_num_threads() == 2
    limit_threads(1)
    assert torch.get_num_threads() == 1
    open_predict_engine("torch", threads=2)
    assert torch.get_num_threads() == 2
