"""Every network, tiny, and its float twin: torch's own modules with the weights of an engine.

The engine is seen from outside only. Its weights go in and come out as its `state`, and a gradient
is what one step of SGD subtracted: with momentum still at zero, `w_1 = w_0 - rate * dL/dw`, and
with a rate so large that w_0 is lost in w_1's rounding, `-w_1 / rate` is the gradient to float32
precision. The same rate wrecks the weights, so a gradient that was taken through weights already
updated would show.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy

from engines import LookAhead, Optimizer, Recipe, open_train_engine
from models import ModelSpec
from models.base import FFModel
from models.build import build_model
from models.pooling import pooled_shape

CLASSES = 5
NETWORKS = {
    # Widths that 5 classes do not divide, and no two alike.
    "mlp": ModelSpec("mlp", (11,), CLASSES, (23, 17, 31, 14)),
    "resnet8": ModelSpec("resnet8", (3, 9, 8), CLASSES, width=0.5),
    "resnet18": ModelSpec("resnet18", (3, 8, 8), CLASSES, width=0.125),
    "mobilenet_v2": ModelSpec("mobilenet_v2", (3, 16, 16), CLASSES, width=0.1),
    "efficientnet_b0": ModelSpec("efficientnet_b0", (2, 16, 15), CLASSES, width=0.1),
}
# Where steps are many and values matter less: the smallest images that every stride still halves.
TINY = NETWORKS | {
    name: dataclasses.replace(NETWORKS[name], input_shape=(2, 8, 7))
    for name in ("mobilenet_v2", "efficientnet_b0")
}
HUGE_RATE = 2.0**40
SGD = Recipe(optimizer=Optimizer("sgd"))


def batch_of(spec: ModelSpec, rows: int, seed: int = 0):
    """Samples within the engine's clip of 4 deviations, and labels."""
    rng = np.random.default_rng(seed)
    x = np.clip(rng.normal(size=(rows, *spec.input_shape)), -3.9, 3.9).astype(np.float32)
    return x, rng.integers(0, spec.max_classes, rows)


def opened(spec: ModelSpec, precision: str, look_ahead: LookAhead, seed: int = 4):
    """An engine whose heads, norms and biases have left their start: signs and sizes differ."""
    recipe = dataclasses.replace(SGD, precision=precision, look_ahead=look_ahead)
    engine = open_train_engine(spec, seed=seed, recipe=recipe)
    rng, state = np.random.default_rng(seed), engine.state()
    for name, array in state.items():
        if not name.startswith("parameters.") or name.endswith((".step", ".momentum")):
            continue
        if name.endswith("gamma"):
            # Away from zero, where the norm cannot be inverted; a third of them negative.
            values = rng.uniform(0.5, 1.5, array.shape) * rng.choice([-1, 1, 1], array.shape)
        elif name.endswith(("beta", "bias")):
            values = rng.normal(scale=0.3, size=array.shape)
        elif name.startswith("parameters.heads"):
            values = rng.normal(size=array.shape) / np.sqrt(array.shape[1])
        else:
            continue
        state[name] = values.astype(array.dtype)
    engine.load_state(state)
    return engine


def sgd_gradients(engine, batch, look_ahead_weight: float, places=None):
    """Losses, and the gradient of everything that learns, by name; the engine is used up."""
    before = engine.state()
    report = engine.train_step(
        *batch, learning_rate=HUGE_RATE, look_ahead_weight=look_ahead_weight, places=places
    )
    after = engine.state()
    return report.losses, {
        short_name(name): (before[name] - after[name].astype(np.float64)) / HUGE_RATE
        for name in before
        if f"{name}.momentum" in before
    }


def short_name(name: str) -> str:
    """`units.0.conv.weight`, `units.0.conv.gamma`, `heads.0.bias`, ..."""
    return name.removeprefix("parameters.").replace("weight.weight", "weight")


class Twin:
    """The float modules with an engine's weights, in float64 and train mode."""

    def __init__(self, spec: ModelSpec, state) -> None:
        self.spec = spec
        self.model: FFModel = build_model(spec, 0).double()
        # As the engine names it: a leaf, or a leaf and the shape in which the engine has it.
        self.leaves = {engine_name(n): p for n, p in self.model.named_parameters()}
        values = {short_name(name): torch.from_numpy(a).double() for name, a in state.items()}
        with torch.no_grad():
            for name, leaf in self.leaves.items():
                leaf.copy_(as_kernel(values[name], leaf) if leaf.ndim == 4 else values[name])
        self.heads = [
            {
                part: values[f"heads.{u}.{part}"].requires_grad_()
                for part in ("weight", "bias")
                if f"heads.{u}.{part}" in values
            }
            for u in range(len(spec.units))
        ]

    def served(self, state) -> Twin:
        """The twin in eval mode, with the engine's running statistics."""
        for name, module in self.model.named_modules():
            if name.endswith(".bn"):
                layer = name.removesuffix(".bn")
                module.running_mean.copy_(torch.from_numpy(state[f"{layer}.mean"]))
                module.running_var.copy_(torch.from_numpy(state[f"{layer}.var"]))
        self.model.eval()
        return self

    @torch.no_grad()
    def answers(self, x, arrays):
        """Goodness `[batch, C]` that decides: of dense units the mean of all but the first's."""
        rows = np.clip((x.reshape(len(x), -1) - arrays["input.mean"]) / arrays["input.std"], -4, 4)
        activities = self.model(torch.from_numpy(rows).double().view(x.shape))
        goodness = [self.goodness(u, y) for u, y in enumerate(activities)]
        judges = goodness[1:] if activities[-1].ndim == 2 else goodness[-1:]
        return torch.stack(judges).mean(dim=0).numpy()

    def losses(self, batch, places=None):
        x, labels = (torch.from_numpy(array) for array in batch)
        left_out = torch.from_numpy(np.zeros(()) if places is None else ~places).bool()
        logits = [
            self.goodness(u, y) * (5.0 if y.ndim == 2 else 1.0)
            for u, y in enumerate(self.model(x.double()))
        ]
        return [cross_entropy(found.masked_fill(left_out, -torch.inf), labels) for found in logits]

    def goodness(self, unit: int, activity):
        """Mean square of each class's group, or a linear head on the pooled activity."""
        if activity.ndim == 2:
            groups = torch.tensor_split(activity, self.spec.max_classes, dim=1)
            return torch.stack([group.square().mean(dim=1) for group in groups], dim=1)
        shape = pooled_shape(self.spec.units[unit].output_shape)
        pooled = adaptive_avg_pool2d(activity, shape[:2]).permute(0, 2, 3, 1).flatten(1)
        head = self.heads[unit]
        return pooled @ head["weight"].t() + head["bias"]

    def gradients(self, batch, weight_of, places=None):
        """Losses, and per name the gradient of `sum_j weight_of(unit, j) L_j`.

        A head learns from its own unit's loss alone.
        """
        losses = self.losses(batch, places)
        found = {}
        for u in range(len(losses)):
            total = sum(weight_of(u, j) * losses[j] for j in range(u, len(losses)))
            own = {n: leaf for n, leaf in self.leaves.items() if n.startswith(f"units.{u}.")}
            grads = torch.autograd.grad(total, [*own.values()], retain_graph=True)
            for name, grad in zip(own, grads, strict=True):
                found[name] = as_matrix(grad).numpy() if grad.ndim == 4 else grad.numpy()
            head = {f"heads.{u}.{part}": leaf for part, leaf in self.heads[u].items()}
            if head:
                grads = torch.autograd.grad(losses[u], [*head.values()], retain_graph=True)
                found |= {name: grad.numpy() for name, grad in zip(head, grads, strict=True)}
        return [loss.item() for loss in losses], found


def engine_name(module_name: str) -> str:
    for theirs, ours in (
        ("conv.weight", "weight"), ("bn.weight", "gamma"), ("bn.bias", "beta"),
        ("linear.weight", "weight"), ("linear.bias", "bias"),
    ):  # fmt: skip
        if module_name.endswith(f".{theirs}"):
            return module_name.removesuffix(theirs) + ours
    return module_name


def as_kernel(matrix, like):
    """`[O, k*k*C]` to `[O, C, k, k]`."""
    out, channels, k, _ = like.shape
    return matrix.view(out, k, k, channels).permute(0, 3, 1, 2)


def as_matrix(kernel):
    """`[O, C, k, k]` to `[O, k*k*C]`."""
    return kernel.permute(0, 2, 3, 1).flatten(1)
