"""The options that describe a trial, the same in every command that runs some."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import Parser, integers, names, numbers
from benchmarks.datasets import (
    DIGIT_IMAGES,
    DIGITS,
    MADE_UP,
    Sources,
    load_sources,
    made_up,
)
from benchmarks.trial import METHOD_NAMES, PRODUCTS_NAMES, SCHEDULES, Trial, TrialError
from engines.recipe import FUSION_NAMES, MASTER_NAMES, NEGATIVES_NAMES, OPTIMIZER_NAMES
from models import MODEL_NAMES

_KINDS = ("exact", "discounted")
_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "model": (f"one of: {', '.join(MODEL_NAMES)}", {}),
    "data": (f"IDX or ImageFolder folder, .zip, .csv, .npz, or: {DIGITS}, {DIGIT_IMAGES}", {}),
    "test": ("test set, any of these layouts; without it t10k-* files, else a fifth held out", {}),
    "epochs": ("passes over the training samples", {"type": int}),
    "width": ("factor on hidden widths or channels", {"type": float}),
    "limit": ("most training samples, drawn by seed; the test set stays whole", {"type": int}),
    "hidden": ("hidden widths of the mlp", {"type": integers}),
    "batch": ("samples per step", {"type": int}),
    "learning_rate": ("the optimizer's largest", {"type": float}),
    "schedule": (f"of the rate, per step: {', '.join(SCHEDULES)}", {}),
    "optimizer": (f"of every method: {', '.join(OPTIMIZER_NAMES)}", {}),
    "weight_decay": ("decoupled, on weight matrices", {"type": float}),
    "augment": ("crop by up to 4 pixels and mirror, at random", {"action": "store_true"}),
    "look_ahead": ("lambda in the first and last epoch", {"type": numbers}),
    "look_ahead_form": (
        f"{', '.join(_KINDS)}; without it exact for the mlp, else discounted",
        {"choices": _KINDS},
    ),
    "window": ("later units that are looked ahead to; without it all", {"type": int}),
    "masters": (
        f"of ff-int8: {', '.join(MASTER_NAMES)}; without it int16 where compiled, else float32",
        {},
    ),
    "threshold": ("theta of ff-int8-two-pass", {"type": float}),
    "label_value": ("how long a label is as an input beside its sample", {"type": float}),
    "negatives": (f"its wrong labels: {', '.join(NEGATIVES_NAMES)}", {}),
    "threads": ("threads of torch; without it torch's own choice", {"type": int}),
    "fusion": (f"of the chains between INT8 products: {', '.join(FUSION_NAMES)}", {}),
    "products": (
        f"{', '.join(PRODUCTS_NAMES)}: the same integers on a CPU without INT8 hardware, for "
        "accuracy only: times and memory are left out",
        {},
    ),
}
# Not by the parser, which cannot know that `--draw` needs none of them.
_NEEDED = ("model", "data", "epochs")


def add_trial_options(
    parser: Parser, *, leave_out: Collection[str] = (), **defaults: object
) -> None:
    """An option for every field of `Trial` but method and seed.

    Args:
        parser: Gets them.
        leave_out: Fields that the command sets itself.
        defaults: Where they differ from those of `Trial`.
    """
    fields = {field.name: field.default for field in dataclasses.fields(Trial)} | defaults
    for name, (text, how) in _OPTIONS.items():
        if name in leave_out:
            continue
        default = None if name in _NEEDED and name not in defaults else fields[name]
        parser.add_argument("--" + name.replace("_", "-"), default=default, help=text, **how)


def add_methods_and_seeds(
    parser: Parser, methods: Sequence[str] = METHOD_NAMES, seeds: Sequence[int] = (0,)
) -> None:
    """`--methods` and `--seeds`."""
    known = ", ".join(METHOD_NAMES)
    parser.add_argument(
        "--methods", type=names, default=methods, help=f"with commas between, of: {known}"
    )
    parser.add_argument(
        "--seeds", type=integers, default=seeds, help="integers with commas between"
    )


def add_shape_options(parser: Parser) -> None:
    """What made-up data look like."""
    add = parser.add_argument
    add("--input-shape", type=integers, help="without it 1,28,28 for the mlp, else 3,32,32")
    add("--classes", type=int, default=10, help="of the made-up data")


def shape_of(asked: argparse.Namespace) -> tuple[int, ...]:
    """Shape of one sample of made-up data."""
    shape: tuple[int, ...] | None = asked.input_shape
    return shape or ((1, 28, 28) if asked.model == "mlp" else (3, 32, 32))


def sources_of(asked: argparse.Namespace, samples: int) -> Sources:
    """The data that `--data` names; `samples` of them, or one a class, where they are made up.

    Raises:
        DataError: They cannot be used.
    """
    if asked.data == MADE_UP:
        return made_up(shape_of(asked), asked.classes, max(samples, asked.classes))
    return load_sources(asked.data)


def check_trial_options(asked: argparse.Namespace) -> None:
    """Refuse what no single trial can see.

    Raises:
        TrialError: A list is of the wrong length or names one twice, a number of threads is none,
            or a path leads nowhere.
    """
    if asked.threads is not None and asked.threads < 1:
        raise TrialError(f"--threads is {asked.threads}; wanted at least 1")
    if len(asked.look_ahead) != 2:
        raise TrialError(f"--look-ahead has {len(asked.look_ahead)} numbers; wanted first,last")
    for option in ("methods", "seeds"):
        values = getattr(asked, option, ())
        if len(set(values)) < len(values):
            raise TrialError(f"--{option} names one twice: {','.join(map(str, values))}")
    for option in ("data", "test"):
        given = getattr(asked, option, None)
        if given not in (None, DIGITS, DIGIT_IMAGES, MADE_UP) and not Path(given).exists():
            raise TrialError(
                f"--{option} {given}: nothing is there; give a path, {DIGITS!r} or {DIGIT_IMAGES!r}"
            )


def use_threads(asked: argparse.Namespace) -> None:
    """Torch's threads in this process, as asked; a child process takes its trial's."""
    if asked.threads is not None:
        import torch

        torch.set_num_threads(asked.threads)


def trial_of(asked: argparse.Namespace, **own: Any) -> Trial:  # noqa: ANN401 - a Trial's fields
    """The trial that the options describe.

    Args:
        asked: Parsed options.
        own: Fields that are no options, or differ from them.

    Raises:
        TrialError: There is no such trial.
    """
    fields = {field.name for field in dataclasses.fields(Trial)}
    given = {name: value for name, value in vars(asked).items() if name in fields} | own
    for name in _NEEDED:
        if given[name] is None:
            raise TrialError(f"--{name} is missing; wanted {_OPTIONS[name][0]}")
    return Trial(**given)


def trials_of(asked: argparse.Namespace, variants: Sequence[dict[str, Any]]) -> list[Trial]:
    """Every variant for the first seed, then for the next: drift of the machine hits all alike."""
    return [trial_of(asked, seed=seed, **own) for seed in asked.seeds for own in variants]
