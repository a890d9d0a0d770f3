"""The count of live tensor bytes, on programs whose peak can be counted by hand."""

import torch

from benchmarks.live_bytes import peak_live_bytes


def block(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8)


def test_the_peak_is_the_highest_sum_within_a_step():
    before = block(10_000)  # not counted: it was there

    def build() -> list[torch.Tensor]:
        large = block(1_000_000)  # gone before the steps
        del large
        return [block(500)]

    def step(kept: list[torch.Tensor]) -> None:
        if len(kept) < 3:
            kept.append(block(30))  # what the first two steps leave for good: 60
        a = block(1000)
        b = block(2000)
        del a
        c = block(700)  # 2,000 + 700 < 3,000
        del b, c
        kept[0] = block(500)  # old and new alive for a moment

    assert peak_live_bytes(build, step) == 500 + 60 + 3000
    assert len(before) == 10_000


def test_what_autograd_keeps_and_what_operations_use_inside_counts():
    n = 4096  # float32: 16,384 bytes

    def build() -> torch.Tensor:
        return torch.empty(n, requires_grad=True)

    def step(w: torch.Tensor) -> None:
        y = w.exp()  # kept by autograd after `y` itself is gone
        z = y.sin()  # keeps y
        del y
        z.backward(z.detach())
        w.grad = None

    # w, y, z; cos(y) and its product with the gradient, of which nothing in the program speaks.
    assert peak_live_bytes(build, step) == 5 * 4 * n


def test_optimizer_state_counts():
    n = 1000

    def build() -> torch.optim.AdamW:
        return torch.optim.AdamW([torch.empty(n)], fused=True)

    def step(adam: torch.optim.AdamW) -> None:
        (weight,) = adam.param_groups[0]["params"]
        weight.grad = torch.zeros(n)
        adam.step()
        weight.grad = None

    # Weight, gradient, two moments; a few bytes for the step count.
    assert 0 <= peak_live_bytes(build, step) - 4 * 4 * n < 100
