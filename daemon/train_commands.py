"""`ffedge train`, `ffedge pause` and `ffedge resume`, over HTTP like any client."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated, Any

import typer

from daemon.address import UrlOption, daemon_url
from daemon.asking import ask_object, not_ours
from daemon.model_commands import JsonOption
from daemon.model_words import one_line, why_refused

_POLL_SECONDS = 0.2


def add_train_commands(app: typer.Typer) -> None:
    """Add the three."""
    app.command("train")(_train)
    app.command("pause")(_pause)
    app.command("resume")(_resume)


def _train(
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps. Default: learner.train_steps.")
    ] = None,
    max_seconds: Annotated[
        float | None,
        typer.Option(
            help="End so long after it began, or with the pause it is then held by. "
            "Default: no limit."
        ),
    ] = None,
    reason: Annotated[str, typer.Option(help="Kept with the job.")] = "operator",
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have a running daemon train now, and wait for what comes of it; exit code 1 if it failed."""
    address = daemon_url(url)
    asked = {"max_steps": max_steps, "max_seconds": max_seconds, "reason": reason}
    job = ask_object(address, "/train", asked)
    try:
        if any(job[key] != value for key, value in asked.items()):
            _note(f"{job['job']} is at it already: it is waited for, and nothing else is begun")
        told = ""
        while job["state"] in ("waiting", "running"):
            if job["learning"]["state"] in ("paused", "down"):
                # Seconds that are left would change it with each look.
                reasons = [reason["reason"] for reason in job["learning"]["reasons"]]
                now = f"{job['state']}, {reasons}"
                if told != now:
                    _note(f"{job['job']} waits: learning is {one_line(job['learning']['text'])}")
                told = now
            time.sleep(_POLL_SECONDS)
            job = ask_object(address, f"/train/{job['job']}")
        typer.echo(json.dumps(job) if as_json else _outcome(job))
    except (KeyError, TypeError) as error:
        raise not_ours(address) from error
    sys.exit(0 if job["state"] == "completed" else 1)


def _pause(
    reason: Annotated[str, typer.Option(help="Shown wherever it is asked.")] = "no reason given",
    seconds: Annotated[
        float | None, typer.Option(help="For so long. Default: until ffedge resume.")
    ] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have a running daemon learn nothing; samples are kept and predictions answered."""
    body = {"reason": reason, "seconds": seconds}
    _say_learning(daemon_url(url), "/train/pause", body, as_json=as_json)


def _resume(url: UrlOption = None, as_json: JsonOption = False) -> None:
    """End a pause; what else holds learning back, such as a limit, goes on."""
    _say_learning(daemon_url(url), "/train/resume", {}, as_json=as_json)


def _say_learning(address: str, path: str, body: dict[str, Any], *, as_json: bool) -> None:
    answer = ask_object(address, path, body)
    if as_json:
        typer.echo(json.dumps(answer))
        return
    try:
        typer.echo(f"learning is {one_line(answer['learning']['text'])}")
        if not answer["durable"]:
            _note("the disk did not take that: it holds until the daemon ends")
    except (KeyError, TypeError) as error:
        raise not_ours(address) from error


def _note(text: str) -> None:
    typer.echo(text, err=True)


def _outcome(job: dict[str, Any]) -> str:
    gate = job["gate"]
    if gate is None:
        return f"{job['job']} {job['state']}: {job['error']}"
    verdict = "accepted" if gate["decision"] == "accepted" else f"refused: {why_refused(gate)}"
    return (
        f"{job['job']}: {job['samples']:,} new samples, {job['steps']:,} steps in "
        f"{job['seconds']:.1f} s; version {job['candidate']} {verdict}"
    )
