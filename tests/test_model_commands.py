"""The commands that tell a daemon what to do, against one whose learner really learns.

Here, too, a version passes its probation on samples that were not yet learned, and a rollback
reaches the learner: the whole way, over real pipes.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from daemon import model_commands
from daemon.__main__ import app
from daemon.status import read_status
from tests.running import RunningDaemon, wait_for
from tests.test_end_to_end import FEATURES, accuracy, post_striped


def ffedge(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "daemon", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def told(*arguments: str) -> str:
    """What a command prints that is run in this process, which is faster."""
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    more = '[gate]\nprobation_samples = 60\nkeep_versions = 9\n[power]\nprovider = "none"\n'
    with RunningDaemon(tmp_path_factory.mktemp("commands"), FEATURES, more) as daemon:
        yield daemon


@pytest.mark.parametrize(("durable", "noted"), [(True, ""), (False, "the disk did not take that")])
def test_a_rollback_that_the_disk_did_not_take_is_said_to_be_so(monkeypatch, durable, noted):
    answers = {
        "/models": {"model": "mlp", "active": "2"},
        "/models/mlp/rollback": {"active": "1", "previous": None, "durable": durable}
        | {"left_out": {"after_seq": 0, "through_seq": 1500}},
    }
    monkeypatch.setattr(model_commands, "ask_object", lambda _, path, *body: answers[path])
    done = CliRunner().invoke(app, ["rollback"])
    assert done.stderr.startswith(noted)
    assert bool(done.stderr) is not durable
    assert (
        "samples 1 to 1,500, 1,500 in all, is left out for good: the learner begins" in done.stdout
    )


def versions(daemon: RunningDaemon) -> list[dict]:
    return daemon.client.get("/models").json()["versions"]


def learned(daemon: RunningDaemon) -> bool:
    """A learned version is good."""
    return any(v["state"] == "good" and v["version"] != "1" for v in versions(daemon))


def train_while_paused(url: str) -> None:
    """The job waits, and says why until the pause ends."""
    paused = told("pause", "--reason", "lens change", "--url", url)
    assert paused == "learning is paused: by an operator (lens change), until resumed\n"
    limits = ["--max-steps", "4", "--max-seconds", "60", "--json"]
    command = [sys.executable, "-m", "daemon", "train", "--url", url, *limits]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as trained:
        try:
            assert trained.stderr is not None
            assert "waits: learning is paused: by an operator" in trained.stderr.readline()
            assert "learning is running" in told("resume", "--url", url)
            output, _ = trained.communicate(timeout=100)
        finally:
            trained.kill()
    assert trained.returncode == 0
    job = json.loads(output.splitlines()[-1])
    assert (job["state"], job["trigger"], job["max_seconds"]) == ("completed", "manual", 60)


def test_the_commands_see_and_change_what_serves(daemon):
    url = str(daemon.client.base_url)
    none = ffedge("rollback", "--url", url)
    assert (none.returncode, none.stdout) == (2, "")
    assert none.stderr.startswith("ffedge: no earlier version is kept that was not found bad")
    wait_for(daemon.learner_up, "the learner")
    early = ffedge("train", "--url", url)
    assert early.returncode == 2
    assert early.stderr.startswith("ffedge: learning begins with the first")

    post_striped(daemon, 500, seed=1)
    wait_for(lambda: daemon.metric("ffedge_model_version") != 1, "a swap", 60)
    post_striped(daemon, 200, seed=2)
    wait_for(lambda: learned(daemon), "a version to pass its probation", 60)
    wait_for(daemon.settled, "learning", 60)
    train_while_paused(url)

    # What serves may be any version that is kept; the one before is there again at once.
    active, *_, other = [v["version"] for v in versions(daemon) if v["role"]]
    assert f"version {active} serves already: nothing was" in told("activate", active, "--url", url)
    assert f"version {other} serves; a rollback goes to" in told("activate", other, "--url", url)
    assert told("activate", active, "--url", url).startswith(f"version {active} serves;")

    models = json.loads(ffedge("models", "--url", url, "--json").stdout.splitlines()[-1])
    assert models["active"] == str(int(daemon.metric("ffedge_model_version")))
    done = ffedge("rollback", "--url", url, "--reason", "to see")
    assert done.returncode == 0, done.stderr
    serves, left_out = done.stdout.splitlines()
    assert serves.startswith(f"version {models['previous']} serves;")
    assert re.match(r"what was learned from samples .* to 1?[0-9]{3}, .* left out for", left_out)
    kinds = [
        f'ffedge_learner_events_total{{kind="{kind}"}}' for kind in ("retreated", "began_anew")
    ]
    wait_for(lambda: any(daemon.metric(kind) for kind in kinds), "the learner to go back")
    wait_for(lambda: read_status(url)["events"], "the event on record")
    assert read_status(url)["events"][0]["kind"] in ("retreated", "began_anew")
    shown = ffedge("models", "--url", url).stdout
    assert "bad" in shown
    assert "by operator: to see" in shown
    again = ffedge("rollback", "--url", url, "--to", models["active"])
    assert again.returncode == 2
    assert "was found bad" in again.stderr
    # The learner goes on from there, and what it makes is accepted again.
    post_striped(daemon, 200, seed=3)
    newer = int(models["active"])
    wait_for(lambda: daemon.metric("ffedge_model_version") > newer, "a newer version", 60)
    assert accuracy(daemon, seed=4) > 0.9
