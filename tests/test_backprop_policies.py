"""How each baseline rounds a gradient, against its formula computed by hand or in float64."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch

from benchmarks.backprop.gradient import GradientCodes, GradientQuantizer, Rounding, direction_error
from benchmarks.backprop.policies import SEARCH_PERIOD, Dai8, Gdai8Like, Nearest, Strong, Ui8
from engines.fusion import Fusion, open_fusion
from engines.int8 import QTensor

SHARED_SCALE = torch.tensor(0.5)
EAGER = Fusion("eager", "a test of the formula")


class Halves(NamedTuple):
    """Noise of which every draw is 2^15 - 1: rounding becomes nearest, halves down."""

    elements: int

    def words(self) -> torch.Tensor:
        return torch.full((self.elements,), 0x7FFF7FFF, dtype=torch.int32)


class HalfRounding(Rounding):
    def __init__(self) -> None:
        super().__init__(0, EAGER)

    def noise(self, g: torch.Tensor) -> Halves:
        return Halves(g.numel())


def quantized(
    policy: GradientQuantizer,
    g: torch.Tensor,
    weight_scale: torch.Tensor = SHARED_SCALE,
    *,
    want_input: bool = True,
    sums_channels: bool = True,
) -> GradientCodes:
    return policy.quantize(g, weight_scale, want_input=want_input, sums_channels=sums_channels)


def rows(*values: list[float]) -> torch.Tensor:
    """`[G, 1, O]`."""
    return torch.tensor(values)[:, None]


def codes(part: QTensor) -> list[list[int]]:
    assert part.codes.dtype == torch.int8
    return part.codes[:, 0].tolist()


def nearest_down(x: np.ndarray, scale: float) -> np.ndarray:
    """What `HalfRounding` rounds to, in float64: halves, to 2^-16 of a code, go down."""
    parts = np.rint(x / scale * 2**16)
    return np.clip((parts + 2**15 - 1) // 2**16, -127, 127) * scale


def turned(g: np.ndarray, rounded: np.ndarray) -> float:
    norms = np.linalg.norm(g) * np.linalg.norm(rounded)
    return 1 - (g * rounded).sum() / norms if norms else 1.0


# --- the policies, by their formulas -----------------------------------------------------------


def test_nearest_has_one_scale_and_shares_its_codes():
    g = rows([1.0, -2.0], [0.5, 4.0])
    found = quantized(Nearest(HalfRounding()), g)
    (for_weight,), (for_input,) = found
    assert codes(for_weight) == [[32, -64], [16, 127]]  # 31.75, -63.5 (to even), 15.875, 127
    assert for_weight.scale.item() == pytest.approx(4 / 127)
    assert codes(for_input) == codes(for_weight)
    assert for_input.scale.item() == pytest.approx(0.5 * 4 / 127)


def test_strong_clips_each_channel_at_a_moving_maximum():
    policy = Strong(HalfRounding())
    ((part,), nothing) = quantized(policy, rows([1.0, -2.0], [0.5, 4.0]), want_input=False)
    assert codes(part) == [[127, -64], [63, 127]]
    assert part.scale.flatten().tolist() == pytest.approx([1 / 127, 4 / 127])
    assert nothing == ()
    ((part,), _) = quantized(policy, rows([2.0, 0.0], [0.9, 0.0]), want_input=False)
    # 0.2 * 1 + 0.8 * 2 and 0.2 * 4 + 0.8 * 0; the 2.0 lies beyond its clip.
    assert part.scale.flatten().tolist() == pytest.approx([1.8 / 127, 0.8 / 127])
    assert codes(part) == [[127, 0], [63, 0]]


def test_strong_folds_the_weight_scale_into_the_rows_of_the_input_gradient():
    g, scales = rows([1.0, -2.0], [0.5, 4.0]), torch.tensor([2.0, 0.5])
    (_, (part,)) = quantized(Strong(HalfRounding()), g, scales)
    assert codes(part) == [[127, -64], [63, 127]]  # of the rows [2, -1] and [1, 2]
    assert part.scale.flatten().tolist() == pytest.approx([2 / 127, 2 / 127])
    (_, (part,)) = quantized(Strong(HalfRounding()), g, scales, sums_channels=False)
    assert codes(part) == [[127, -127], [127, 127]]  # depthwise: a scale for each channel too
    assert part.scale[:, 0].tolist() == [
        pytest.approx([2 / 127, 1 / 127]),
        pytest.approx([1 / 127, 2 / 127]),
    ]


def heavy_tailed(seed: int) -> torch.Tensor:
    """A gradient of which most is far below its maximum, as early layers have it."""
    values = np.random.default_rng(seed).standard_t(2, (64, 1, 32))
    return torch.from_numpy(values.astype(np.float32))


def test_ui8_searches_the_clip_that_turns_the_gradient_least():
    policy, scales = Ui8(HalfRounding()), torch.linspace(0.5, 2.0, 500)
    # One value is 100 times the rest's deviation, and the rest has most of the energy.
    g = 0.01 * torch.randn((400, 1, 500), generator=torch.Generator().manual_seed(0))
    g[7, 0, 7] = 1.0
    ((for_weight,), (for_input,)) = quantized(policy, g, scales)
    exact = g.double().numpy()
    highest = np.abs(exact).max()
    errors = {
        share: turned(exact, nearest_down(exact, share * highest / 127))
        for share in np.arange(1, 11) / 10
    }
    best = min(errors, key=errors.get)
    assert best < 1.0  # else the search could as well be absent
    assert for_weight.scale.item() == pytest.approx(best * highest / 127)
    # Float32 puts a few of 200,000 values on the other side of a half.
    factor = max(math.exp(-20 * errors[best]), 0.1)
    assert policy.learning_rate_factor == pytest.approx(factor, rel=1e-5)
    assert 0.1 < policy.learning_rate_factor < 1.0
    # The same clip, carried through the folding: nothing is clipped a second time.
    assert for_input.scale.item() == pytest.approx(best * highest * 2.0 / 127)
    clipped = np.clip(exact, -best * highest, best * highest) * scales.double().numpy()
    found = for_input.dequantize().double().numpy()
    assert np.abs(found - clipped).max() <= for_input.scale.item() * 0.5001


def test_ui8_keeps_its_clip_for_a_hundred_steps():
    policy, g = Ui8(HalfRounding()), rows([1.0, 0.5])
    for step in range(2 * SEARCH_PERIOD + 1):
        ((part,), _) = quantized(policy, g * (1 + step), torch.ones(2), want_input=False)
        searched = step - step % SEARCH_PERIOD
        assert part.scale.item() == pytest.approx((1 + searched) / 127, rel=1e-5)
    assert policy.learning_rate_factor == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("policy", [Ui8, Gdai8Like])
def test_a_gradient_of_zeros_postpones_the_search(policy):
    layer = policy(HalfRounding())
    for _ in range(3):
        found = quantized(layer, torch.zeros(4, 1, 3))
        assert all(not part.codes.any() and part.scale > 0 for part in found.for_weight)
    found = quantized(layer, rows([3.0, 1.0, 0.1]))
    assert sum(part.dequantize() for part in found.for_weight).max() == pytest.approx(3.0)


def test_dai8_clips_by_the_distribution_of_each_channel():
    # |g| > sigma in 4 of 6 (sigma 0.82), in 1 of 6 (sigma 1.49).
    g = rows([1.0, 4.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.1, 0.0], [-0.1, 0.0])
    policy = Dai8(HalfRounding())

    def clips(gradient: torch.Tensor) -> list[float]:
        found = quantized(policy, gradient)
        assert found.for_input[0].scale.item() == pytest.approx(0.5 * gradient.abs().max() / 127)
        return (127 * found.for_weight[0].scale.flatten()).tolist()

    assert clips(g) == pytest.approx([1.0, 4.0])
    assert clips(2 * g) == pytest.approx([2.0, 0.2 * 4 + 0.8 * 8])
    peaked = g[:, :, [1, 1]]  # an inverted T in both: each goes on from the clip it had
    assert clips(peaked) == pytest.approx([0.2 * 2 + 0.8 * 4, 0.2 * 7.2 + 0.8 * 4])


def test_gdai8_like_parts_the_gradient_at_the_best_break_point():
    policy, g = Gdai8Like(HalfRounding()), heavy_tailed(1)
    found = quantized(policy, g)
    exact = g.double().numpy()
    highest = np.abs(exact).max()

    def parts(share: float) -> tuple[np.ndarray, np.ndarray]:
        low = np.where(np.abs(exact) <= share * highest, exact, 0)
        return nearest_down(low, share * highest / 127), nearest_down(exact - low, highest / 127)

    shares = [0.5**k for k in range(1, 7)]
    best = min(shares, key=lambda share: turned(exact, sum(parts(share))))
    low, high = found.for_weight
    assert (low.scale.item(), high.scale.item()) == pytest.approx(
        (best * highest / 127, highest / 127)
    )
    for part, wanted in zip((low, high), parts(best), strict=True):
        np.testing.assert_allclose(part.dequantize().double().numpy(), wanted, atol=1e-5)
    assert not (low.codes * high.codes).any()
    for ours, theirs in zip(found.for_input, found.for_weight, strict=True):
        assert torch.equal(ours.codes, theirs.codes)
        assert ours.scale.item() == pytest.approx(0.5 * theirs.scale.item())


@pytest.mark.parametrize("policy", [Strong, Ui8, Dai8, Gdai8Like])
def test_stochastic_policies_are_right_on_average(policy):
    g = torch.tensor([0.3, -0.01, 0.002, 1.0]).repeat(4, 1)[:, None] * torch.tensor([1.0, 2, 3, 4])
    scales = torch.full((4,), 0.5) if policy.per_channel_weights else SHARED_SCALE
    layer, draws = policy(Rounding(3, EAGER)), 1000
    total_weight, total_input = torch.zeros_like(g), torch.zeros_like(g)
    quantized(layer, g, scales)
    clip = 127 * max(part.scale.max() for part in quantized(layer, g, scales).for_weight)
    for _ in range(draws):
        found = quantized(layer, g, scales)
        total_weight += sum(part.dequantize() for part in found.for_weight)
        total_input += sum(part.dequantize() for part in found.for_input)
    wanted = g.clamp(-clip, clip)
    # One draw is off by at most a step, and a quarter of a step squared on average at worst.
    bound = 5 * 0.5 * clip / 127 / draws**0.5
    torch.testing.assert_close(total_weight / draws, wanted, atol=bound.item(), rtol=0)
    torch.testing.assert_close(total_input / draws, 0.5 * wanted, atol=bound.item(), rtol=0)


def test_direction_error():
    g = torch.tensor([3.0, 4.0])
    assert direction_error(g, 2 * g) == pytest.approx(0.0, abs=1e-6)
    assert direction_error(g, torch.tensor([3.0, 0.0])) == pytest.approx(1 - 3 / 5)
    assert direction_error(g, -g) == pytest.approx(2.0)
    assert direction_error(g, torch.zeros(2)) == 1.0
    assert direction_error(1e-15 * g, 1e-15 * g) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("policy", [Strong, Gdai8Like])
def test_compiled_chains_give_the_same_codes(policy):
    fusion = open_fusion()
    if fusion.name == EAGER.name:
        pytest.skip(fusion.reason)
    g, scales = heavy_tailed(2), torch.linspace(0.5, 2.0, 32)
    if not policy.per_channel_weights:
        scales = SHARED_SCALE
    found = [quantized(policy(Rounding(5, mode)), g, scales) for mode in (EAGER, fusion)]
    for eager, compiled in zip(*map(lambda f: f.for_weight + f.for_input, found), strict=True):
        assert torch.equal(eager.codes, compiled.codes)
        torch.testing.assert_close(eager.scale, compiled.scale)
