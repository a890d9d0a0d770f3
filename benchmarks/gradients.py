r"""Fig. 3: how gradients are distributed, layer by layer, and what INT8 leaves of them.

    python -m benchmarks.gradients --data PATH --epochs 1 --depths 1,2,3 --json FILE

MLPs of several depths are trained, by float32 back-propagation and by Forward-Forward; then, on one
batch of training samples and in float32, the gradient at each layer's pre-activation (`error`) and
at its weights (`weight`) is taken:

    bp-fp32    of the network's one loss, by autograd
    ff-int8    of the unit's own loss, nothing carried back: what the paper says is easy to quantize

Of each gradient g, under one scale `s = max|g| / 127` and to the nearest as naive INT8
back-propagation has it: how often every code comes up, the largest magnitude in standard
deviations, the share of the non-zero elements that are lost, that is rounded to code 0 (zeros
behind a silent ReLU lose nothing and count apart), and how far rounding turns the whole gradient,
`d_c = 1 - cos(g, g_hat)`: elements that are lost may be too small to matter.

Source: FF-INT8 (arXiv 2506.22771v1), Fig. 3 and section III, which has gradients of early layers
sharper, with larger extremes, the deeper the network.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group

from benchmarks.child import DivergedError, Fit
from benchmarks.command import (
    EXIT_FAILED,
    Parser,
    StoppedError,
    add_output,
    finish,
    integers,
    plot_path,
    records_of,
    show,
)
from benchmarks.datasets import Sources, load_sources
from benchmarks.meter import EnergyMeter, commit, machine
from benchmarks.options import add_trial_options, check_trial_options, trial_of
from benchmarks.plot import LOOKS, draw, provenance
from benchmarks.report import Record, grouped, spread, table
from benchmarks.trial import Trial, TrialError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from benchmarks.layer_gradients import LayerGradient

_METHODS = ("bp-fp32", "ff-int8")
_QUANTITIES = ("error", "weight")
_LARGEST_CODE = 127
# From the first layer to the last: the palette's colours from dark to light.
_LAYER_COLOURS = ("#000000", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9")


def measure(asked: argparse.Namespace) -> list[Record]:
    """A record for every depth, method, seed, layer and quantity.

    Raises:
        DivergedError: A loss is not finite.
        TrialError: The network is no mlp.
    """
    check_trial_options(asked)
    if asked.model != "mlp":
        raise TrialError(f"--model {asked.model}: depths are of the mlp")
    sources = load_sources(asked.data, asked.test)
    version = commit(Path(__file__).parent)
    records: list[Record] = []
    for seed in asked.seeds:
        for depth in asked.depths:
            for method in _METHODS:
                hidden = (asked.hidden_width,) * depth
                trial = trial_of(asked, method=method, hidden=hidden, seed=seed)
                print(f"{method} seed {seed}: {depth} hidden layers", file=sys.stderr, flush=True)
                for name, layer in enumerate(_trained(trial, sources), start=1):
                    for quantity in _QUANTITIES:
                        of = {
                            "method": method,
                            "model": trial.model,
                            "data": Path(trial.data).name,
                            "seed": seed,
                            "epochs": trial.epochs,
                            "batch": trial.batch,
                            "depth": depth,
                            "layer": name,
                            "quantity": quantity,
                        }
                        found = describe(getattr(layer, quantity))
                        records.append(of | found | {"commit": version, "machine": machine()})
    return records


def _trained(trial: Trial, sources: Sources) -> list[LayerGradient]:
    """Train one network, in this process, and take its layers' gradients."""
    import torch

    from benchmarks.backprop.method import Backprop
    from benchmarks.layer_gradients import backprop_gradients, forward_forward_gradients
    from benchmarks.methods import ForwardForwardInt8

    if trial.threads is not None:
        torch.set_num_threads(trial.threads)
    train = sources.split(seed=trial.seed, limit=trial.limit).train
    spec = trial.spec(train.x.shape[1:], len(train.classes))
    batch = min(trial.batch, len(train))
    kind = Backprop if trial.method == "bp-fp32" else ForwardForwardInt8
    method = kind(trial, spec, train.floats(len(train)))
    fit = Fit(trial, train, batch, EnergyMeter(Path("absent")), lambda message: None)
    for epoch in range(trial.epochs):
        fit.epoch(method, epoch)
    one = train.take(np.arange(batch)).floats(batch)
    if isinstance(method, Backprop):
        return backprop_gradients(method, one)
    return forward_forward_gradients(method.export(one.classes), one)


def describe(g: Tensor) -> dict[str, Any]:
    """What INT8 makes of a gradient.

    Args:
        g: float32, of any shape.

    Returns:
        `elements`; `largest` magnitude; `largest_in_deviations`; `zero`, the share that is 0
        already; `lost`, the share of the others that gets code 0; `turned`, d_c; `counts` of the
        codes -127..127.
    """
    import torch

    from benchmarks.backprop.gradient import direction_error
    from engines.int8 import absmax_scale, quantize

    rounded = quantize(g, absmax_scale(g))
    codes = rounded.codes
    nonzero = g != 0
    largest, deviation = g.abs().max().item(), g.std(correction=0).item()
    lost = ((codes == 0) & nonzero).sum().item() / max(1, int(nonzero.sum()))
    counts = torch.bincount(codes.flatten().to(torch.int64) + _LARGEST_CODE, minlength=255)
    return {
        "elements": g.numel(),
        "largest": largest,
        "largest_in_deviations": largest / deviation if deviation else 0.0,
        "zero": 1.0 - nonzero.to(torch.float32).mean().item(),
        "lost": lost,
        # Of float32 sums: a gradient that is hardly turned may come out just below 0.
        "turned": max(0.0, direction_error(g, rounded.dequantize()).item()),
        "counts": counts.tolist(),
    }


def layer_name(record: Record) -> str:
    """`layer 1` up to the last hidden one, then `output`."""
    return "output" if record["layer"] > record["depth"] else f"layer {record['layer']}"


def tabulate(records: Sequence[Record]) -> Group:
    """A row a depth, method and layer."""
    rows = []
    for group in grouped(records, lambda r: (r["depth"], r["method"], r["layer"])).values():
        fields = {
            field: spread([record[field] for record in group])
            for field in ("largest", "largest_in_deviations", "zero", "lost", "turned")
        }
        first = group[0]
        rows.append(
            (
                f"{first['depth']}",
                first["method"],
                layer_name(first),
                f"{fields['largest'].median:.1e}",
                f"{fields['largest_in_deviations'].median:.1f}",
                f"{100 * fields['zero'].median:.1f}",
                fields["lost"].text(".1f", 100),
                f"{fields['turned'].median:.1e}",
            )
        )
    first = records[0]
    return table(
        f"Fig. 3: gradients ({first['quantity']}) of {_what(records)}",
        (
            "hidden layers", "method", "layer", "largest", "in deviations", "zero before %",
            "lost % of the rest", "turned",
        ),
        rows,
        "lost: rounded to code 0 under one absmax scale; turned: 1 - cos(gradient, its INT8 form); "
        "medians, and range of what is lost, over seeds",
    )  # fmt: skip


def _what(records: Sequence[Record]) -> str:
    first = records[0]
    epochs = f"{first['epochs']} epoch{'s' if first['epochs'] > 1 else ''}"
    return f"{first['model']} on {first['data']} after {epochs}, batch {first['batch']}"


def paint(records: Sequence[Record], panels: Sequence[Axes]) -> None:
    """A column a depth: codes under either method, what is lost, and how far that turns."""
    depths = grouped(records, lambda record: record["depth"])
    for column, (depth, group) in enumerate(depths.items()):
        by_method = grouped(group, lambda record: record["method"])
        for row, (method, chosen) in enumerate(by_method.items()):
            axes = panels[row * len(depths) + column]
            _paint_codes([r for r in chosen if r["seed"] == chosen[0]["seed"]], axes)
            axes.set_title(f"{method}, {depth} hidden layer{'s' if depth > 1 else ''}")
            if not column:
                axes.set_ylabel("elements")
        lost, turned = panels[len(by_method) * len(depths) + column :: len(depths)]
        _paint_bars(by_method, depth, "lost", 100.0, lost)
        lost.set_ylim(0, 100)
        _paint_bars(by_method, depth, "turned", 1.0, turned)
        turned.set_yscale("log")
        low, high = np.log10(turned.get_ylim())
        turned.set_ylim(10 ** np.floor(low), 10 ** np.ceil(high))
        if not column:
            lost.set_ylabel("lost (% of non-zero)")
            turned.set_ylabel("turned (1 - cos)")


def _paint_codes(records: Sequence[Record], axes: Axes) -> None:
    codes = np.arange(-_LARGEST_CODE, _LARGEST_CODE + 1)
    for record in records:
        counts = np.array(record["counts"], dtype=float)
        colour = _LAYER_COLOURS[(record["layer"] - 1) % len(_LAYER_COLOURS)]
        widest = f"{record['largest_in_deviations']:.0f} deviations"
        axes.step(
            codes,
            np.where(counts > 0, counts, np.nan),
            where="mid",
            color=colour,
            linewidth=1.0,
            label=f"{layer_name(record)}: largest {widest}",
        )
    axes.set_yscale("log")
    axes.set_xlabel("code under one absmax scale")
    axes.set_xticks((-127, -64, 0, 64, 127))
    axes.margins(y=0.3)  # room for the legend
    axes.set_ylim(bottom=0.5)
    axes.legend(loc="upper right", fontsize=7, handlelength=1.0)


def _paint_bars(
    by_method: dict[str, list[Record]], depth: int, field: str, factor: float, axes: Axes
) -> None:
    width = 0.8 / len(by_method)
    for place, (method, group) in enumerate(by_method.items()):
        by_layer = grouped(group, lambda record: record["layer"])
        spreads = [spread([factor * r[field] for r in layer]) for layer in by_layer.values()]
        middles = np.array([s.mean for s in spreads])
        axes.bar(
            np.array([*by_layer]) + (place - (len(by_method) - 1) / 2) * width,
            middles,
            width,
            yerr=[middles - [s.low for s in spreads], [s.high for s in spreads] - middles],
            color=LOOKS[method].colour,
            ecolor="0.5",
            capsize=2,
            label=method,
        )
    names = [*(f"layer {layer}" for layer in range(1, depth + 1)), "output"]
    axes.set_xticks(range(1, depth + 2), names)


def run(argv: Sequence[str] | None) -> None:
    """Do what the command line asks; see `benchmarks.command.finish` for what it raises."""
    parser = Parser("python -m benchmarks.gradients", "Distributions of gradients: Fig. 3.")
    add_trial_options(parser, leave_out=("hidden", "products"), model="mlp")
    add = parser.add_argument
    add("--seeds", type=integers, default=(0,), help="integers with commas between")
    add("--depths", type=integers, default=(1, 2, 3), help="hidden layers")
    add("--hidden-width", type=int, default=500, help="units a hidden layer")
    add("--quantity", choices=_QUANTITIES, default=_QUANTITIES[0], help="what is shown of both")
    add_output(parser)
    asked = parser.parse_args(argv)
    records = records_of(asked, partial(_measure_or_stop, asked))
    shown = [record for record in records if record["quantity"] == asked.quantity]
    lost = {
        f"{depth}/{method}/{layer}": spread([r["lost"] for r in group]).median
        for (depth, method, layer), group in grouped(
            shown, lambda r: (r["depth"], r["method"], layer_name(r))
        ).items()
    }
    show([tabulate(shown)], {"records": len(records), "quantity": asked.quantity, "lost": lost})
    what = {"error": "at pre-activations", "weight": "at weights"}[asked.quantity]
    draw(
        plot_path(asked),
        f"Gradients {what}: {_what(records)}",
        (len(_METHODS) + 2, len({record["depth"] for record in shown})),
        partial(paint, shown),
        "Above: how often each INT8 code comes up under one absmax scale, first seed, log scale. "
        "Below: share of non-zero elements that round to code 0, and how far rounding turns the "
        "gradient; mean, and range over seeds. ff-int8: own losses alone. After FF-INT8 (arXiv "
        f"2506.22771v1), Fig. 3. {provenance(records)}",
        (4.4, 2.8),
    )


def _measure_or_stop(asked: argparse.Namespace) -> list[Record]:
    try:
        return measure(asked)
    except DivergedError as error:
        raise StoppedError(str(error), EXIT_FAILED) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return finish(run, argv)


if __name__ == "__main__":
    sys.exit(main())
