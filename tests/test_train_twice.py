"""Training asked for many times at once is one job: a peer's server began one for each click."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from tests.daemon_fixtures import WAIT_SECONDS, daemon_parts, restarts, running, sample
from tests.running import RunningDaemon, wait_for

ASKED = 50


@pytest.fixture
def daemon(tmp_path):
    with RunningDaemon(tmp_path, 8, '[power]\nprovider = "none"\n') as daemon:
        yield daemon


def test_fifty_requests_at_once_are_one_job(daemon):
    samples = [{"x": [float(i % 2), *map(float, range(7))], "label": i % 2} for i in range(200)]
    assert daemon.client.post("/samples", json={"samples": samples}).status_code == 201
    wait_for(daemon.learner_up, "the learner", 60)
    wait_for(lambda: daemon.settled() and daemon.client.get("/train").json()["jobs"], "rest", 60)
    before = {job["job"] for job in daemon.client.get("/train").json()["jobs"]}
    together = threading.Barrier(ASKED)

    def ask(_: int) -> tuple[int, str]:
        with httpx2.Client(base_url=daemon.client.base_url, timeout=WAIT_SECONDS) as client:
            together.wait(WAIT_SECONDS)
            # Enough steps that it goes on for as long as anybody asks.
            answer = client.post("/train", json={"max_steps": 20_000})
            return answer.status_code, answer.json()["job"]

    with ThreadPoolExecutor(ASKED) as pool:
        answers = [*pool.map(ask, range(ASKED))]
    assert sorted({status for status, _ in answers}) == [200, 202]
    assert [status for status, _ in answers].count(202) == 1
    (asked,) = {job for _, job in answers}
    after = {job["job"] for job in daemon.client.get("/train").json()["jobs"]}
    assert after - before == {asked}


def test_a_job_that_was_asked_for_is_sent_once_to_each_learner(tmp_path):
    """The requests' thread and the supervisor's both get to it when a learner comes up."""
    script = """
ready()
for message in iter(hear, None):
    say("job_started", trigger="manual", after_seq=0)
    say("job_failed", error=json.dumps(message))
"""
    with daemon_parts(tmp_path) as parts, running(parts, script) as supervisor:
        parts.store.add([sample(i) for i in range(9)]).result(WAIT_SECONDS)
        wait_for(lambda: supervisor.up, "the learner")
        with ThreadPoolExecutor(ASKED) as pool:
            work = [pool.submit(supervisor.request_training, "", 5) for _ in range(ASKED)]
            new = [one.result(WAIT_SECONDS)[1] for one in work]
        wait_for(lambda: len(parts.jobs.list()) == sum(new), "all of them")
        wait_for(lambda: {job["state"] for job in parts.jobs.list()} == {"failed"}, "their ends")
        assert restarts(parts) == 0
