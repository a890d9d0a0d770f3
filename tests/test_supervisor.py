"""The server's end of the learner, against learners that are well, ill, and hostile.

The fake learners are real processes that write the messages by hand, so the wire format is under
test too.
"""

from __future__ import annotations

import functools
import json

import pytest

from daemon.errors import NothingToLearnError, NotReadyError
from engines import weights_digest
from tests.daemon_fixtures import (
    WAIT_SECONDS,
    alive,
    daemon_parts,
    failures,
    made,
    network,
    put,
    restarts,
    running,
    sample,
)
from tests.running import wait_for as wait_for_long

wait_for = functools.partial(wait_for_long, seconds=10)


@pytest.fixture
def parts(tmp_path):
    with daemon_parts(tmp_path) as parts:
        yield parts


def test_a_learner_that_reports_is_up_until_it_is_stopped(parts):
    with running(parts, "ready(); progress(); until_closed()") as supervisor:
        assert wait_for(lambda: supervisor.up, "the learner")
        wait_for(lambda: parts.reading("ffedge_learner_backlog_samples") == 7, "its report")
        assert parts.reading("ffedge_learner_up") == 1
        assert parts.reading("ffedge_progressive_accuracy_ratio", window="all") == 0.5
        assert parts.reading("ffedge_progressive_accuracy_ratio", window="recent") == 0.25
        pid = supervisor.pid
        assert alive(pid)
    assert not supervisor.up
    assert supervisor.pid is None
    assert not alive(pid)
    assert parts.reading("ffedge_learner_up") == 0
    assert restarts(parts) == 0


def test_it_is_told_where_to_begin(parts):
    parts.versions.refuse(2)
    script = """
say("job_started", trigger="time", after_seq=0)
say("job_failed", error=json.dumps(begin))
until_closed()
"""
    with running(parts, script):
        error = wait_for(lambda: failures(parts)[:1] or None, "the job")[0]
    active = parts.versions.manifest.versions[0]
    named = [1, active.sha256]
    wanted = {"type": "begin", "active": named, "best": named, "next_version": 3, "retreat": 0}
    wanted |= {"good": [1], "newest_good": named, "pass_over": None}
    assert json.loads(error) == wanted


def test_a_job_from_start_to_swap(parts):
    digest = weights_digest(put(parts.versions, network(2)))
    script = """
ready()
say("job_started", trigger="samples", after_seq=0)
progress(64, 1); progress(36, 2)
propose(2, sys.argv[1])
verdict = hear()
say("job_started", trigger="time", after_seq=100)
say("job_failed", error=json.dumps(verdict))
until_closed()
"""
    with running(parts, script, digest):
        wait_for(lambda: len(parts.jobs.list()) == 2, "the second job")
        verdict = wait_for(lambda: parts.jobs.list()[0]["error"], "its end")
    assert json.loads(verdict) == {"type": "judged", "version": 2, "accepted": True}
    job = parts.jobs.list()[1]
    assert (job["state"], job["samples"], job["steps"], job["candidate"]) == (
        "completed",
        100,
        3,
        "2",
    )
    assert job["losses"] == [0.7, 0.6]
    assert job["gate"]["decision"] == "accepted"
    assert parts.serving == 2
    assert parts.reading("ffedge_learn_samples_total") == 100
    assert parts.reading("ffedge_learn_steps_total") == 3
    assert parts.reading("ffedge_learn_seconds_total") == 1.0
    assert parts.reading("ffedge_unit_loss", unit="1") == 0.6


def test_a_damaged_candidate_is_refused_and_the_learner_lives_on(parts):
    put(parts.versions, network(2))
    script = """
ready()
say("job_started", trigger="samples", after_seq=0)
propose(2, "0" * 64)
verdict = hear()
progress()
until_closed()
"""
    with running(parts, script) as supervisor:
        wait_for(lambda: parts.reading("ffedge_learner_backlog_samples") == 7, "life after it")
        assert supervisor.up
    (job,) = parts.jobs.list()
    assert (job["state"], job["gate"]["reason"]) == ("completed", "damaged")
    assert (parts.serving, parts.versions.manifest.last, restarts(parts)) == (1, 2, 0)


TRAINED = """
ready()
while (message := hear()) is not None:
    say("job_started", trigger="manual", after_seq=0)
    say("job_failed", error=json.dumps(message))
"""


def test_training_on_request(parts):
    parts.store.add([sample(i) for i in range(9)]).result(WAIT_SECONDS)
    with running(parts, TRAINED) as supervisor:
        wait_for(lambda: supervisor.up, "the learner")
        job, new = supervisor.request_training("drift", 50)
        assert new
        assert (job["state"], job["trigger"], job["reason"]) == ("waiting", "manual", "drift")
        heard = wait_for(lambda: parts.jobs.find(job["job"])["error"], "the job's end")
    assert json.loads(heard) == {"type": "train", "max_steps": 50, "max_seconds": None}


def test_training_is_refused_with_nothing_to_learn_or_nobody_to_learn_it(parts):
    supervisor = made(parts, ["true"])
    with pytest.raises(NothingToLearnError, match="first 1 samples"):
        supervisor.request_training("", None)
    parts.store.add([sample(i) for i in range(9)]).result(WAIT_SECONDS)
    with pytest.raises(NotReadyError, match="try again"):
        supervisor.request_training("", None)


def test_a_waiting_job_reaches_the_next_learner(parts):
    parts.store.add([sample(i) for i in range(9)]).result(WAIT_SECONDS)
    script = f"""
if not os.path.exists(sys.argv[1]):
    ready()
    hear()
    open(sys.argv[1], "w").close()
    os._exit(1)
{TRAINED}"""
    with running(parts, script, str(parts.folder / "second")) as supervisor:
        wait_for(lambda: supervisor.up, "the first learner")
        job, _ = supervisor.request_training("patient", 5)
        heard = wait_for(lambda: parts.jobs.find(job["job"])["error"], "the job's end")
    assert json.loads(heard) == {"type": "train", "max_steps": 5, "max_seconds": None}
