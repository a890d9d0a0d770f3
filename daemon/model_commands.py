"""`ffedge models`, `ffedge rollback` and `ffedge activate`, over HTTP like any client."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.address import UrlOption, daemon_url
from daemon.asking import ask_object, not_ours
from daemon.model_words import (
    holdout_of_active,
    marks,
    minute,
    one_line,
    probation,
    refusals,
    why_refused,
)

if TYPE_CHECKING:
    from rich.table import Table

_SHOWN = 5  # newest of what there may be many of
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


def add_model_commands(app: typer.Typer) -> None:
    """Add the three."""
    app.command("models")(_models)
    app.command("rollback")(_rollback)
    app.command("activate")(_activate)


def _models(url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Show which versions a running daemon keeps, and how each was judged.

    Kept are gate.keep_versions of them, and beyond these what serves, the previous one (which a
    rollback goes to), the best on the hold-out, the newest good one, what is on probation, and what
    that is compared with.
    """
    address = daemon_url(url)
    models = ask_object(address, "/models")
    if as_json:
        typer.echo(json.dumps(models))
        return
    from rich.console import Console

    try:
        Console(markup=False, emoji=False).print(_table(models))
        for line in _lines(models):
            typer.echo(line)
    except (KeyError, TypeError, ValueError) as error:
        raise not_ours(address) from error


def _rollback(
    to: Annotated[str | None, typer.Option(help="Version. Default: the previous one.")] = None,
    reason: Annotated[str, typer.Option(help="For the ledger.")] = "operator",
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the version that serves bad, and have an earlier one serve at once.

    What was learned after that one was made is left out for good: its samples stay stored, and are
    neither learned again nor replayed. Before any version has passed its probation it goes back to
    the untrained network. `ffedge activate` serves another version and leaves nothing out.
    """
    address = daemon_url(url)
    body = {"reason": reason} if to is None else {"to": to, "reason": reason}
    answer = ask_object(address, f"/models/{_active(address)[0]}/rollback", body)
    _say_serves(answer, "serves", as_json=as_json)
    if not as_json:
        typer.echo(_left_out(address, answer))


def _activate(
    version: Annotated[str, typer.Argument(help="One that `ffedge models` shows.")],
    reason: Annotated[str, typer.Option(help="For the ledger.")] = "operator",
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have any version that is kept serve at once; none is found bad, nothing learned is undone.

    What was on probation is looked after no longer, and may be activated again. A rollback from
    here goes to an earlier version, by number, not to the one that served before.
    """
    address = daemon_url(url)
    model, active = _active(address)
    body = {"version": version, "reason": reason}
    answer = ask_object(address, f"/models/{model}/activate", body)
    serves = "serves already: nothing was changed" if answer.get("active") == active else "serves"
    _say_serves(answer, serves, as_json=as_json)


def _active(address: str) -> tuple[str, str]:
    """The model, and the version that serves."""
    models = ask_object(address, "/models")
    try:
        return models["model"], models["active"]
    except KeyError as error:
        raise not_ours(address) from error


def _say_serves(answer: dict[str, Any], serves: str, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(answer))
        return
    previous = answer.get("previous")
    back = "there is none to roll back to" if previous is None else f"a rollback goes to {previous}"
    typer.echo(f"version {answer.get('active')} {serves}; {back}")
    if not answer.get("durable", True):
        typer.echo(
            "the disk did not take that: until there is room, when it is written by itself, it "
            "holds only until the daemon ends",
            err=True,
        )


def _left_out(address: str, answer: dict[str, Any]) -> str:
    """What a rollback costs."""
    try:
        after, through = answer["left_out"]["after_seq"], answer["left_out"]["through_seq"]
    except (KeyError, TypeError) as error:
        raise not_ours(address) from error
    if through == after:
        return "nothing was learned since that would be left out"
    text = f"what was learned from samples {after + 1:,} to {through:,}, {through - after:,} in all"
    text += ", is left out for good"
    if not after:
        return f"{text}: the learner begins anew, with an untrained network"
    return f"{text}; more, where no checkpoint from there is left: ffedge status says so"


def _lines(models: dict[str, Any]) -> list[str]:
    lines = ["hold-out: of each when it was judged, on the samples of that moment"]
    if (now := holdout_of_active(models)) is not None:
        lines[0] += f"; {models['active']} as of {minute(now.decided)}: {now.accuracy:.1%}"
    lines += [probation(trial) for trial in models["probation"]]
    lines += [row] if (row := refusals(models)) else []
    for refused in models["refused"][:_SHOWN]:
        gate = refused["gate"]
        why = why_refused(gate)
        lines.append(f"{minute(gate['decided'])}  {refused['version']} refused: {why}")
    for change in models["changes"][:_SHOWN]:
        who, why = change["by"], one_line(change["reason"])
        result = change["result"].replace("_", " ")
        lines.append(
            f"{minute(change['decided'])}  {result} from {change['from']} to {change['to']} by "
            + (who if why == who else f"{who}: {why}")
        )
    return lines


def _table(models: dict[str, Any]) -> Table:
    from rich.table import Table

    title = f"{models['model']}, {len(models['classes'])} classes"
    table = Table(title=title, box=None, pad_edge=False, padding=(0, 1))
    for name in ("version", "", "state", "parent", "last sample", "hold-out", "created"):
        table.add_column(name, overflow="fold")
    for version in models["versions"]:
        gate = version["gate"]
        table.add_row(
            version["version"],
            marks(models, version["version"]),
            version["state"],
            version["parent"] or "-",
            f"{version['last_seq']:,}",
            "-" if gate is None else f"{gate['candidate_accuracy']:.1%}",
            minute(version["created"]),
        )
    return table
