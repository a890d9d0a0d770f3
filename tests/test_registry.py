"""Which engine answers: by name or the first that opens, every refusal kept, nothing in silence."""

from __future__ import annotations

import pytest
import torch

from engines import (
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


def refuse(device):
    raise ImportError("libnvinfer is not here")


def accept(device):
    return registry.Loaded(TorchPredictEngine, f"on {device}")


def use_engines(monkeypatch, **loaders):
    monkeypatch.setattr(registry, "_PREDICT_ENGINES", loaders)


def test_torch_opens_by_name_and_by_itself():
    for name in ("torch", "auto"):
        opened = open_predict_engine(name)
        assert opened.name == "torch"
        with opened.open(exported()) as engine:
            assert isinstance(engine, TorchPredictEngine)
    wanted = "asked for by name; on cpu (asked for by name)"
    assert open_predict_engine("torch").reason == wanted


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(EngineUnavailableError, match="'tensorflow' is unknown; known: auto, torch"):
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


def test_only_a_limit_changes_the_threads():
    torch.set_num_threads(2)
    open_predict_engine()
    open_train_engine(ModelSpec("mlp", (2,), 2, (2,)), seed=0)
    assert torch.get_num_threads() == 2
    limit_threads(1)
    assert torch.get_num_threads() == 1
