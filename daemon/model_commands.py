"""`ffedge models`, `ffedge rollback` and `ffedge train`, over HTTP like any client."""

from __future__ import annotations

import json as json_format
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.address import UrlOption, daemon_url
from daemon.asking import ask_object, not_ours

if TYPE_CHECKING:
    from rich.table import Table

_POLL_SECONDS = 0.2
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


def add_model_commands(app: typer.Typer) -> None:
    """Add the three."""
    app.command("models")(_models)
    app.command("rollback")(_rollback)
    app.command("train")(_train)


def _models(url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Show which versions a running daemon keeps, and how each was judged."""
    address = daemon_url(url)
    models = ask_object(address, "/models")
    if as_json:
        _print_json(models)
        return
    from rich.console import Console

    try:
        Console().print(_table(models))
        for change in models["changes"][:5]:
            typer.echo(
                f"{change['decided']}  {change['result']} from {change['from']} to {change['to']} "
                f"by {change['by']}: {change['reason']}"
            )
    except (KeyError, TypeError) as error:
        raise not_ours(address) from error


def _rollback(
    to: Annotated[str | None, typer.Option(help="Version. Default: the previous one.")] = None,
    reason: Annotated[str, typer.Option(help="For the ledger.")] = "operator",
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the version that serves bad, and have an earlier one serve at once."""
    address = daemon_url(url)
    body = {"reason": reason} if to is None else {"to": to, "reason": reason}
    model = ask_object(address, "/models").get("model")
    if model is None:
        raise not_ours(address)
    answer = ask_object(address, f"/models/{model}/rollback", body)
    if as_json:
        _print_json(answer)
        return
    further = answer.get("previous")
    typer.echo(
        f"version {answer.get('active')} serves; "
        + ("there is no earlier one" if further is None else f"a further rollback: {further}")
    )


def _train(
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps. Default: learner.train_steps.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Kept with the job.")] = "operator",
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have a running daemon train now, and wait for what comes of it; exit code 1 if it failed."""
    address = daemon_url(url)
    body: dict[str, Any] = {"reason": reason}
    if max_steps is not None:
        body["max_steps"] = max_steps
    job = ask_object(address, "/train", body)
    while job.get("state") in ("waiting", "running"):
        time.sleep(_POLL_SECONDS)
        job = ask_object(address, f"/train/{job['job']}")
    if as_json:
        _print_json(job)
    else:
        typer.echo(_outcome(job))
    sys.exit(0 if job.get("state") == "completed" else 1)


def _outcome(job: dict[str, Any]) -> str:
    gate = job.get("gate")
    if gate is None:
        return f"{job.get('job')} {job.get('state')}: {job.get('error')}"
    verdict = (
        gate["decision"] if gate["reason"] is None else f"{gate['decision']}, {gate['reason']}"
    )
    return (
        f"{job['job']}: {job['samples']:,} new samples, {job['steps']:,} steps in "
        f"{job['seconds']:.1f} s; version {job['candidate']} {verdict}"
    )


def _table(models: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(title=f"{models['model']}, {len(models['classes'])} classes", box=None)
    for name in ("version", "", "state", "parent", "last sample", "hold-out", "created"):
        table.add_column(name)
    for version in models["versions"]:
        gate = version["gate"]
        table.add_row(
            version["version"],
            version["role"] or "",
            version["state"],
            version["parent"] or "-",
            f"{version['last_seq']:,}",
            "-" if gate is None else f"{gate['candidate_accuracy']:.1%}",
            version["created"],
        )
    return table


def _print_json(found: dict[str, Any]) -> None:
    typer.echo(json_format.dumps(found))
