"""The engines' part of `ffedge doctor`: right products pass, wrong ones are told."""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile

import pytest
import torch

from engines import Weights, open_train_engine, probe_predict_engines, registry
from engines import probe as probes
from engines.torch_predict import TorchPredictEngine
from models import ModelSpec
from tests.fake_tensorrt import VERSIONS, FakeDriver, Rig


def test_integer_products_are_compared_element_by_element(monkeypatch):
    finding = probes.integer_products()
    assert finding.verdict == "PASS"
    assert finding.found.endswith("in int8, exact")

    def one_wrong(a, b):
        product = torch._int_mm(a, b)
        product[0, 0] += 1
        return product

    monkeypatch.setattr(probes, "int8_matmul", one_wrong)
    finding = probes.integer_products()
    assert finding.verdict == "FAIL"
    assert "1 of 2627 elements are wrong" in finding.found


def test_slow_integer_products_are_a_warning_with_the_reason(monkeypatch):
    seconds = iter([1.0, 3.0, 3.0, 1.0])
    monkeypatch.setattr(probes, "_median_seconds", lambda work, device: next(seconds))
    monkeypatch.setattr(probes, "slow_products", lambda: "this CPU has no VNNI")
    fast, slow = probes.integer_speed(), probes.integer_speed()
    assert (fast.verdict, "3.00 times as fast" in fast.found) == ("PASS", True)
    assert slow.verdict == "WARN"
    assert slow.found.endswith("0.33 times as fast as a float32 one (this CPU has no VNNI)")


def test_a_speed_is_a_median_of_times_that_were_taken():
    assert 0 < probes._median_seconds(lambda: torch.ones(10).sum(), "cpu") < 1


@pytest.mark.parametrize("refusal", [None, "RuntimeError: no compiler"])
def test_fusion_says_why_not_and_leaves_nothing(monkeypatch, refusal):
    seen = []

    def look(device):
        seen.append(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        return refusal

    monkeypatch.setattr("engines.fusion._refusal", look)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    finding = probes.fusion()
    assert finding.verdict == ("PASS" if refusal is None else "WARN")
    assert (refusal or "works here") in finding.found
    assert seen[0].startswith(tempfile.gettempdir())
    assert not os.path.exists(seen[0])
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/elsewhere"
    assert "TRITON_CACHE_DIR" not in os.environ


@pytest.mark.parametrize(("board", "verdict"), [(True, "FAIL"), (False, "SKIP")])
def test_a_gpu_is_wanted_on_a_board_only(monkeypatch, board, verdict):
    monkeypatch.setattr("engines.device._refusal", lambda: "torch finds no GPU")
    (without,) = probes.cuda(board=board)
    assert without.verdict == verdict
    assert "torch finds no GPU" in without.found


def test_small_and_odd_shapes_are_exact_and_what_torch_refuses_is_named(monkeypatch):
    finding = probes.integer_shapes("cpu")
    assert (finding.verdict, finding.found) == ("PASS", "exact, padded where needed")
    real = torch._int_mm

    def as_on_cuda(a, b, **more):
        if a.shape[0] <= 16 or a.shape[1] % 8 or b.shape[1] % 8:
            raise RuntimeError("self.size(0) needs to be greater than 16")
        return real(a, b, **more)

    monkeypatch.setattr(torch, "_int_mm", as_on_cuda)
    finding = probes.integer_shapes("cpu")
    assert finding.verdict == "PASS"
    for shape in ("[1, 8] @ [8, 8]", "[16, 8] @ [8, 8]", "[17, 12] @ [12, 12]"):
        assert shape in finding.found
    assert "[17, 8]" not in finding.found
    monkeypatch.setattr(probes, "int8_matmul", lambda a, b: real(a, b) + 1)
    assert probes.integer_shapes("cpu").verdict == "FAIL"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_multiplies_integers_rightly():
    verdicts = {finding.name: finding.verdict for finding in probes.cuda(board=False)}
    assert verdicts["CUDA"] == verdicts["INT8 shapes on cuda"] == "PASS"


@pytest.fixture(scope="module")
def versions() -> tuple[Weights, Weights]:
    first, second = (
        open_train_engine(ModelSpec("mlp", (4,), 2, (8,)), seed=seed).export(
            classes=("a", "b"), version=seed + 1, parent=None, last_seq=0
        )
        for seed in (0, 1)
    )
    return first, second


class Wrong(TorchPredictEngine):
    def predict(self, x):
        right = super().predict(x)
        return dataclasses.replace(right, goodness=right.goodness + 1)


@pytest.mark.parametrize(
    ("wanted", "board", "verdict"),
    [
        ("auto", False, "SKIP"),
        ("torch", False, "SKIP"),
        ("auto", True, "WARN"),
        ("torch", True, "WARN"),
        ("tensorrt", True, "FAIL"),
        ("tensorrt", False, "FAIL"),
    ],
)
def test_an_engine_that_is_not_to_be_had(monkeypatch, versions, wanted, board, verdict):
    monkeypatch.setitem(sys.modules, "pycuda", None)
    tensorrt, torch_here = probe_predict_engines(versions, wanted=wanted, board=board)
    assert (tensorrt.name, tensorrt.verdict) == ("engine tensorrt", verdict)
    assert "pycuda unavailable" in tensorrt.found
    assert torch_here.verdict == "PASS"


def test_every_engine_there_is_answers_refuses_or_is_told_broken(monkeypatch, versions):
    def refuse(options):
        raise ImportError("libnvinfer is not here")

    def break_down(_: Weights):
        raise RuntimeError("CUDA error")

    loaders = {
        "absent": refuse,
        "broken": lambda options: registry.Loaded(break_down, "here"),
        "plain": lambda options: registry.Loaded(TorchPredictEngine, "here"),
        "wrong": lambda options: registry.Loaded(Wrong, "here"),
    }
    monkeypatch.setattr(registry, "_PREDICT_ENGINES", loaders)
    findings = probe_predict_engines(versions, wanted="auto", board=False)
    assert [(finding.name, finding.verdict) for finding in findings] == [
        ("engine absent", "SKIP"),
        ("engine broken", "FAIL"),
        ("engine plain", "PASS"),
        ("engine wrong", "FAIL"),
    ]
    assert findings[0].found == "libnvinfer is not here"
    assert findings[1].found == "RuntimeError: CUDA error"
    assert "must not serve" in findings[3].found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("refits", [True, False], ids=["refits", "does not refit"])
def test_tensorrt_takes_another_version_by_a_refit_or_is_told_slow(versions, version, refits):
    rig = Rig(version, FakeDriver())
    rig.trt.refits = refits
    with rig.installed():
        tensorrt, _ = probe_predict_engines(versions, wanted="auto", board=True)
    assert tensorrt.verdict == ("PASS" if refits else "WARN")
    assert "took another version in" in tensorrt.found
    assert ("by a build, not a refit" in tensorrt.found) is not refits
    assert rig.trt.violations == set()
