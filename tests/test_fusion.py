"""Fusion: the mode is chosen once and says why; a fused chain is the chain, at every size."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import NamedTuple

import numpy as np
import pytest
import torch

import engines.torch_train
from engines import EngineUnavailableError, LookAhead, Optimizer, Recipe, fusion, open_train_engine
from engines.cuda_driver import KernelsUnavailableError
from engines.fusion import Fusion, FusionUnavailableError, open_fusion
from engines.heads import LinearHead
from models import ModelSpec
from tests.agreement import assert_agrees
from tests.contracts import bits
from tests.networks import CLASSES, TINY, batch_of

COMPILED = Fusion("compiled", "a test")
needs_compiler = pytest.mark.usefixtures("compiler")
STEP = {"learning_rate": 1e-2, "look_ahead_weight": 0.5}


@pytest.fixture(scope="module", autouse=True)
def refusal() -> str | None:
    """Why nothing compiles; not asked when tests are collected: it is seconds in every worker."""
    with warnings.catch_warnings():
        # torch's compiler uses what torch deprecates, when it is first imported.
        warnings.simplefilter("ignore", DeprecationWarning)
        return fusion._refusal("cpu")


@pytest.fixture
def compiler(refusal: str | None) -> None:
    if refusal is not None:
        pytest.skip(f"torch.compile: {refusal}")


# --- the choice ---------------------------------------------------------------------------------


def test_eager_by_name_asks_no_compiler(monkeypatch):
    monkeypatch.setattr(fusion, "_refusal", None)  # to call it would raise
    assert open_fusion("eager") == Fusion("eager", "asked for by name")


def test_where_compiling_works_auto_takes_it_and_says_so(monkeypatch):
    monkeypatch.setattr(fusion, "_refusal", lambda device: None)
    assert open_fusion() == Fusion("compiled", "torch.compile works here")
    assert open_fusion("compiled") == Fusion("compiled", "asked for by name")


def test_where_it_does_not_auto_runs_eager_and_says_why(monkeypatch):
    monkeypatch.setattr(fusion, "_refusal", lambda device: "no C++ compiler")
    wanted = Fusion("eager", "torch.compile does not work here: no C++ compiler")
    assert open_fusion("auto") == wanted
    engine = open_train_engine(TINY["mlp"], seed=1, recipe=Recipe(fusion="auto"))
    assert engine.fusion == wanted
    assert engine.train_step(*batch_of(TINY["mlp"], 6), **STEP).finite


def test_what_is_asked_for_by_name_is_never_replaced(monkeypatch):
    monkeypatch.setattr(fusion, "_refusal", lambda device: "no C++ compiler")
    message = "^torch.compile does not work here: no C\\+\\+ compiler$"
    with pytest.raises(FusionUnavailableError, match=message):
        open_fusion("compiled")
    with pytest.raises(EngineUnavailableError, match=message):  # as of any engine
        open_train_engine(TINY["mlp"], seed=1, recipe=Recipe(fusion="compiled"))


def test_a_refusal_is_the_first_line_of_what_the_compiler_raised(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no compiler\nsecond line\nthird")

    monkeypatch.setattr(torch, "compile", broken)
    fusion._refusal.cache_clear()
    try:
        assert open_fusion().reason == "torch.compile does not work here: RuntimeError: no compiler"
    finally:
        fusion._refusal.cache_clear()


def in_kernels():
    return {torch.relu: torch.abs}


def no_kernels():
    raise KernelsUnavailableError("there is no nvcc")


def test_kernels_by_name_take_the_place_of_the_chains_that_have_them():
    fusion = open_fusion("kernels", open_kernels=in_kernels)
    said = "asked for by name; 1 chains in CUDA kernels, others eager"
    assert (fusion.name, fusion.reason) == ("kernels", said)
    assert fusion.fuse(torch.relu) is torch.abs
    assert fusion.fuse(torch.neg) is torch.neg


def test_kernels_by_name_are_never_replaced():
    for opener, why in (
        (no_kernels, "there is no nvcc"),
        (None, "the engine does not run on a CUDA device"),
    ):
        with pytest.raises(FusionUnavailableError, match=f"^chains .* in kernels here: {why}$"):
            open_fusion("kernels", open_kernels=opener)


def test_auto_takes_kernels_where_nothing_compiles(monkeypatch):
    monkeypatch.setattr(fusion, "_refusal", lambda *device: "no triton")
    found = open_fusion("auto", open_kernels=in_kernels)
    assert found.name == "kernels"
    assert found.reason == (
        "torch.compile does not work here: no triton; 1 chains in CUDA kernels, others eager"
    )
    found = open_fusion("auto", open_kernels=no_kernels)
    assert found.name == "eager"
    assert found.reason == (
        "torch.compile does not work here: no triton; nor do our kernels: there is no nvcc"
    )
    monkeypatch.setattr(fusion, "_refusal", lambda *device: None)
    assert open_fusion("auto", open_kernels=no_kernels).name == "compiled"  # asks for none


def test_an_eager_chain_is_the_chain_itself():
    assert Fusion("eager", "").fuse(torch.relu) is torch.relu


# --- every chain --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Recording(Fusion):
    """Runs eager and keeps the last arguments and result of every chain, of each kind of state.

    With a mask and without one a chain is other code.
    """

    calls: dict = dataclasses.field(default_factory=dict)

    def fuse(self, chain):
        def run(*args):
            kept = copied(args)
            result = chain(*args)
            names = tuple(name for part in args if isinstance(part, dict) for name in part)
            masked = any(isinstance(a, torch.Tensor) and a.dtype == torch.bool for a in args)
            self.calls[chain, names, masked] = (chain, kept, copied(result))
            return result

        return run


def copied(value):
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, tuple):
        parts = map(copied, value)
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, dict):
        return {name: copied(part) for name, part in value.items()}
    return value


def recorded() -> dict:
    """Every chain that a step goes through, in networks that have one of each kind of layer."""
    calls: dict = {}
    adam, sgd = Optimizer("adam"), Optimizer("sgd")
    for name, masters, optimizer in (
        ("mlp", "float32", adam),
        ("mlp", "int16", sgd),
        ("resnet8", "int16", adam),
        ("efficientnet_b0", "int8", adam),
    ):
        recording = Recording("compiled", "a test", calls)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engines.torch_train, "open_fusion", lambda *_, r=recording: r)
            engine = open_train_engine(
                TINY[name], seed=1, recipe=Recipe(masters=masters, optimizer=optimizer)
            )
        with torch.no_grad():
            for places in (None, None, np.arange(CLASSES) % 2 == 0):
                x, labels = batch_of(TINY[name], 6)
                own = np.arange(CLASSES) == labels[:, None]
                mask = None if places is None else places | own
                engine.train_step(x, labels, **STEP, places=mask)
    return calls


CALLS = recorded()
every_chain = pytest.mark.parametrize("call", CALLS.values(), ids=lambda call: call[0].__name__)


def test_the_masters_were_recorded_with_gradients_and_in_every_kind():
    steps = [
        args for chain, args, _ in CALLS.values() if chain.__name__ in ("adam_step", "sgd_step")
    ]
    assert sorted("remainder" in state for _, state, *_ in steps) == [False, True, True]
    assert all(gradient.values.any() for gradient, *_ in steps)


@every_chain
def test_every_chain_is_one_graph_that_knows_no_sizes_beforehand(call):
    """What compiling asks of a chain, without the seconds that a C++ compiler takes for each."""
    chain, args, wanted = call
    torch.compiler.reset()  # else the recompilations of one test count in the next
    traced = torch.compile(chain, backend="eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        assert_agrees(traced(*copied(args)), wanted, chain.__name__)


@needs_compiler
@pytest.mark.compiled
@every_chain
def test_a_compiled_chain_computes_what_the_eager_one_does(call, request):
    masked = any(isinstance(a, torch.Tensor) and a.dtype == torch.bool for a in call[1])
    headless = masked and {} in call[1]
    if (
        not (headless or call[0].__name__ in ("forward", "adam_step"))
        and not request.config.option.every_chain
    ):
        pytest.skip("seconds a chain; with --every-chain")
    chain, args, wanted = call
    with torch.no_grad():
        assert_agrees(COMPILED.fuse(chain)(*copied(args)), wanted, chain.__name__)


# --- variants -----------------------------------------------------------------------------------


class Part(NamedTuple):
    values: torch.Tensor
    sign: str


def signed_sum(part: Part, factor: float, other: torch.Tensor) -> torch.Tensor:
    total = (part.values * factor + other).sum(dim=1)
    return -total if part.sign == "minus" else total


@needs_compiler
@pytest.mark.compiled
def test_another_batch_or_constant_is_computed_right():
    fused = COMPILED.fuse(signed_sum)
    for rows, factor, sign in [
        (4, 2.0, "plus"), (9, 2.0, "plus"), (9, 3.0, "plus"), (9, 3.0, "minus"), (4, 2.0, "plus"),
    ]:  # fmt: skip
        args = Part(torch.randn(rows, 6), sign), factor, torch.ones(rows, 6)
        torch.testing.assert_close(fused(*args), signed_sum(*args))


@needs_compiler
@pytest.mark.compiled
def test_layers_share_code_where_they_may_and_only_there():
    one, other = torch.randn(5, 6), torch.ones(5, 6)

    def variants():
        return sum(map(count, fusion._VARIANTS.values()))

    def compute(values, other):
        args = Part(values, "plus"), 5.0, other
        torch.testing.assert_close(COMPILED.fuse(signed_sum)(*args), signed_sum(*args))

    compute(one, other)
    before = variants()
    compute(one + 1, other)
    compute(one, other)
    assert variants() == before
    # Another order in memory, or another dtype, is other code.
    compute(one.t().contiguous().t(), other)
    assert variants() == before + 1
    compute((one * 50).char(), other)
    assert variants() == before + 2


@needs_compiler
@pytest.mark.compiled
def test_a_compiled_engine_follows_the_eager_one_and_compiles_nothing_at_a_second_step(request):
    if not request.config.option.every_chain:
        pytest.skip("a minute; with --every-chain")
    spec = ModelSpec("mlp", (11,), 4, (20, 17))
    states = {}
    for mode in ("eager", "compiled"):
        recipe = Recipe(masters="int16", fusion=mode, look_ahead=LookAhead("discounted"))
        engine = open_train_engine(spec, seed=3, recipe=recipe)
        sizes = []
        for step in range(3):
            report = engine.train_step(*batch_of(spec, 12, seed=step), **STEP)
            sizes.append(sum(map(count, fusion._VARIANTS.values())))
        states[mode] = report.losses, engine
        assert sizes[0] == sizes[1] == sizes[2]
        # A smaller last batch is another size and no other arithmetic.
        assert engine.train_step(*batch_of(spec, 7), **STEP).finite
    # Where float sums differ in a last bit a code may differ by one; three steps of it.
    np.testing.assert_allclose(states["compiled"][0], states["eager"][0], rtol=0.02)
    again = open_train_engine(spec, seed=3, recipe=recipe)
    for step in range(3):
        again.train_step(*batch_of(spec, 12, seed=step), **STEP)
    again.train_step(*batch_of(spec, 7), **STEP)
    assert bits(again.state()) == bits(states["compiled"][1].state())


def count(variants) -> int:
    return len(variants) if isinstance(variants, list) else 1


@needs_compiler
@pytest.mark.compiled
def test_a_compiled_error_shares_no_memory_between_its_elements_either():
    head = LinearHead(3, (4, 4, 640))  # pooled to one row, and spread again
    weight = torch.randn(3, math.prod(head.pooled_shape))

    def grad_activity(grad_goodness, activity, weight):
        return head.grad_activity(grad_goodness, activity, {"weight": weight})

    args = torch.randn(2, 3), torch.randn(2, 4, 4, 640), weight
    grad = COMPILED.fuse(grad_activity)(*args)
    assert grad.untyped_storage().nbytes() == grad.numel() * 4
    torch.testing.assert_close(grad, grad_activity(*args))
