"""The whole daemon as a user runs it: real processes, sockets, files and signals."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
from pathlib import Path

import httpx2

from tests.running import RunningDaemon, wait_for

FEATURES = 64


def striped(label: int, noise: random.Random) -> list[float]:
    """A pattern that names its class, under noise."""
    return [16.0 * (i % 4 == label) + noise.randrange(4) for i in range(FEATURES)]


def post_striped(daemon: RunningDaemon, count: int, seed: int) -> None:
    noise = random.Random(seed)
    labels = [noise.randrange(4) for _ in range(count)]
    samples = [{"x": striped(label, noise), "label": label} for label in labels]
    for start in range(0, count, 100):
        answer = daemon.client.post("/samples", json={"samples": samples[start : start + 100]})
        assert answer.status_code == 201, answer.text


def accuracy(daemon: RunningDaemon, seed: int) -> float:
    noise = random.Random(seed)
    labels = [noise.randrange(4) for _ in range(100)]
    body = {"samples": [{"x": striped(label, noise)} for label in labels]}
    predictions = daemon.client.post("/predict", json=body).json()["predictions"]
    return sum(p["label"] == y for p, y in zip(predictions, labels, strict=True)) / len(labels)


def test_learns_serves_and_resumes_after_sigterm(tmp_path: Path) -> None:
    daemon = RunningDaemon(tmp_path, FEATURES)
    with daemon:
        first = daemon.client.post("/predict", json={"x": [0.0] * FEATURES}).json()
        assert first["label"] is None
        assert first["model_version"] == "1"
        post_striped(daemon, 400, seed=1)
        wait_for(lambda: daemon.metric("ffedge_model_version") != 1, "a swap", 60)
        wait_for(daemon.settled, "learning", 60)
        assert accuracy(daemon, seed=2) > 0.9
        learner = daemon.learner_pid()
        before = daemon.client.get("/models").json()
        jobs = daemon.client.get("/train").json()["jobs"]
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(60) == 0
        assert not Path(f"/proc/{learner}").exists()
    manifest = json.loads((daemon.store / "versions" / "manifest.json").read_bytes())
    (active,) = [entry for entry in manifest["versions"] if entry["version"] == manifest["active"]]
    assert active["state"] == "good" or active["trial"]["seconds"] > 0
    with daemon:
        after = daemon.client.get("/models").json()
        assert after["active"] == before["active"]
        assert after["versions"] == before["versions"]
        assert daemon.client.get("/train").json()["jobs"] == jobs
        assert accuracy(daemon, seed=2) > 0.9
        wait_for(daemon.learner_up, "the learner")
        resumed = [line for line in daemon.log.read_text().splitlines() if "learner ready" in line]
        assert json.loads(resumed[-1])["resumed"] is True
        job = daemon.client.post("/train", json={"reason": "again", "max_steps": 16})
        assert job.status_code == 202
        assert daemon.client.get(job.headers["Location"]).json()["reason"] == "again"


def test_predictions_go_on_while_the_learner_is_killed(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path, FEATURES) as daemon:
        wait_for(daemon.learner_up, "the learner")
        failures: list[str] = []
        answered = 0
        stop = threading.Event()

        def ask() -> None:
            nonlocal answered
            with httpx2.Client(base_url=str(daemon.client.base_url), timeout=30) as client:
                while not stop.wait(0.005):
                    answer = client.post("/predict", json={"x": [1.0] * FEATURES})
                    if answer.status_code != 200 or "model_version" not in answer.json():
                        failures.append(answer.text)
                    answered += 1

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            kill_learner_in_training(daemon)
        finally:
            stop.set()
            asking.join()
        assert failures == []
        assert answered > 100
        assert daemon.restarts() == 1
        assert accuracy(daemon, seed=9) > 0.9
        kill_server_alone(daemon)


def kill_server_alone(daemon: RunningDaemon) -> None:
    """Its learner goes, too, wherever it is in its work: this one sees nothing any more."""
    learner = daemon.learner_pid()
    assert learner is not None
    os.kill(learner, signal.SIGSTOP)
    daemon.process.kill()
    daemon.process.wait(30)
    try:
        wait_for(lambda: ended(learner), "the learner's end", 10)
    finally:
        with contextlib.suppress(ProcessLookupError):
            daemon.kill_group()


def ended(pid: int) -> bool:
    """Whoever takes in orphans here may not ask for their exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def kill_learner_in_training(daemon: RunningDaemon) -> None:
    learned = daemon.metric("ffedge_learn_samples_total") or 0
    post_striped(daemon, 2000, seed=0)
    wait_for(
        lambda: (daemon.metric("ffedge_learn_samples_total") or 0) > learned, "training under way"
    )
    victim = daemon.learner_pid()
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: daemon.learner_pid() != victim, "another learner")
    wait_for(daemon.learner_up, "the new learner", 60)
    wait_for(daemon.settled, "learning", 60)


def test_a_learner_whose_fusion_is_not_to_be_had_says_why_in_a_line(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path, more='fusion = "kernels"\n') as daemon:

        def given_up() -> list[str]:
            lines = daemon.log.read_text().splitlines()
            return [line for line in lines if '"learner cannot run as configured"' in line]

        line = wait_for(lambda: next(iter(given_up()), None), "the learner to give up")
        assert "chains cannot run in kernels here" in json.loads(line)["why"]
        assert "Traceback" not in daemon.log.read_text()
        assert daemon.client.get("/health/live").status_code == 200
