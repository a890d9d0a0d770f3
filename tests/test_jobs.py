"""Training jobs: at most one runs, every ask has an answer, and what ended stays ended."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from daemon.serving.gate import Decision, Effort, Scores
from daemon.supervision.jobs import JobBook

DECISION = Decision(7, 6, True, None, Scores(10, 8, 8, 9), 0.01)


@pytest.fixture
def ended():
    return []


@pytest.fixture
def book(ended):
    return JobBook([], lambda number, job: ended.append((number, job)))


def test_what_a_job_cost_is_known_while_it_runs():
    readings = iter([50.0, 62.5, 80.0])
    book = JobBook([], lambda *_: None, joules=lambda: next(readings))
    book.start("samples", 100)
    book.progress(64, 16, 164, [0.5])
    effort = book.effort()
    assert (effort.last_seq, effort.samples, effort.joules) == (164, 64, 12.5)
    assert 0 <= effort.seconds < 20
    book.fail("so that none runs")
    assert book.effort() == Effort()


@pytest.mark.parametrize("readings", [(None, 5.0), (5.0, None), (None, None)])
def test_energy_that_is_not_known_is_not_zero(readings):
    left = iter(readings)
    book = JobBook([], lambda *_: None, joules=lambda: next(left))
    book.start("resumed", 128)  # learned before a restart
    effort = book.effort()
    assert (effort.last_seq, effort.samples, effort.joules) == (128, 0, None)


def states(book: JobBook) -> list[tuple[str, str, str]]:
    return [(job["job"], job["trigger"], job["state"]) for job in book.list()]


def test_a_job_of_the_learners_own(book, ended):
    book.start("samples", 100)
    assert states(book) == [("t-1", "samples", "running")]
    book.progress(64, 16, 164, [0.5, 0.4])
    book.progress(36, 8, 200, [0.3, 0.2])
    book.complete(DECISION)
    (job,) = book.list()
    assert (job["samples"], job["steps"], job["after_seq"], job["last_seq"]) == (100, 24, 100, 200)
    assert (job["losses"], job["error"]) == ([0.3, 0.2], None)
    assert (job["candidate"], job["gate"]) == ("7", DECISION.to_json())
    assert job["seconds"] >= 0
    assert ended == [(1, job)]
    assert book.find("t-1") == job


def test_who_wants_to_know_is_told_when_a_job_starts_and_ends():
    told = []
    book = JobBook([], lambda number, job: told.append(job["state"]), lambda: told.append("start"))
    book.start("samples", 0)
    book.complete(DECISION)
    book.fail("none runs")
    book.start("time", 0)
    book.fail("the learner process ended")
    assert told == ["start", "completed", "start", "failed"]


def test_an_asked_for_job_waits_until_the_learner_takes_it_up(book):
    asked, new = book.request("drift", 50)
    assert new
    assert (asked["state"], asked["reason"], asked["max_steps"]) == ("waiting", "drift", 50)
    assert book.request("again", 9) == (asked, False)
    book.start("manual", 10)
    running, new = book.request("again", 9)
    assert not new
    assert (running["job"], running["state"], running["reason"]) == ("t-1", "running", "drift")
    assert book.waiting() is None
    book.fail("broken")
    assert book.request("again", 9)[1]


def test_the_learners_own_job_does_not_take_the_place_of_one_that_waits(book):
    book.request("operator", None)
    book.start("samples", 0)
    assert book.waiting() is not None
    book.complete(DECISION)
    book.start("manual", 0)
    assert set(states(book)) == {
        ("t-1", "manual", "running"),
        ("t-2", "samples", "completed"),
    }


def test_the_list_goes_newest_first(book):
    book.request("operator", None)
    book.start("samples", 0)
    assert [job["job"] for job in book.list()] == ["t-2", "t-1"]


def test_a_failed_job_says_why_and_a_waiting_one_goes_on_waiting(book, ended):
    book.start("time", 0)
    book.fail("the learner process ended")
    book.fail("twice")
    assert [(number, job["state"], job["error"]) for number, job in ended] == [
        (1, "failed", "the learner process ended")
    ]
    book.request("operator", None)
    book.fail("the learner process ended")
    assert states(book)[0] == ("t-2", "manual", "waiting")


def test_reports_without_a_job_are_harmless(book, ended):
    book.progress(1, 1, 1, [])
    book.complete(DECISION)
    book.fail("nothing runs")
    assert (book.list(), ended, book.find("t-1")) == ([], [], None)


def test_numbers_go_on_after_a_restart(book, ended):
    for _ in range(3):
        book.start("samples", 0)
        book.complete(DECISION)
    past = [job for _, job in reversed(ended)]
    again = JobBook(past, lambda number, job: None)
    assert again.list() == past
    again.start("samples", 0)
    assert [job["job"] for job in again.list()] == ["t-4", "t-3", "t-2", "t-1"]


def test_an_id_that_was_given_out_is_no_other_jobs_after_the_daemon_was_killed():
    recorded: dict[int, dict] = {}
    book = JobBook([], recorded.__setitem__, on_given=recorded.__setitem__)
    book.start("samples", 0)
    assert book.request("", None) == (recorded[1], False)  # its id is given out, too
    book.complete(DECISION)
    book.start("time", 0)
    book.complete(DECISION)
    asked, _ = book.request("again", None)
    assert [(number, job["state"]) for number, job in recorded.items()] == [
        (1, "completed"),
        (2, "completed"),
        (3, "waiting"),
    ]
    book.recall([asked])  # what goes on here has not ended
    assert [job["job"] for job in book.list()] == ["t-3", "t-2", "t-1"]
    assert book.find("t-3") == asked
    book.start("manual", 0)
    again = JobBook(past := [recorded[3], recorded[2], recorded[1]], recorded.__setitem__)
    late = JobBook([], recorded.__setitem__)
    late.recall(past)
    for restarted in (again, late):
        found = restarted.find(asked["job"])
        assert found["state"] == "failed"
        assert found["error"] == "the daemon ended before this job did"
        restarted.start("resumed", 0)
        assert restarted.list()[0]["job"] == "t-4"


def test_many_threads_ask_for_one_job(book):
    with ThreadPoolExecutor(16) as threads:
        answers = [*threads.map(lambda n: book.request(str(n), n), range(1, 200))]
    assert sum(new for _, new in answers) == 1
    assert {job["job"] for job, _ in answers} == {"t-1"}


def test_readers_see_whole_jobs_while_another_thread_moves_them(book, ended):
    rounds = 300

    def learn() -> None:
        for after in range(rounds):
            book.start("samples", after)
            book.progress(2, 1, after + 2, [0.1])
            book.progress(2, 1, after + 4, [0.2])
            book.complete(DECISION) if after % 2 else book.fail("odd")

    def read(_: int) -> None:
        for _ in range(rounds):
            book.request("operator", None)
            for job in book.list():
                assert job["samples"] == 2 * job["steps"]
                assert (job["state"] == "completed") == (job["candidate"] is not None)
                assert (job["state"] == "failed") == (job["error"] is not None)

    with ThreadPoolExecutor(5) as threads:
        work = [threads.submit(learn), *[threads.submit(read, n) for n in range(4)]]
        for done in work:
            done.result(60)
    assert len({number for number, _ in ended}) == rounds
    assert all(job["samples"] == 4 for _, job in ended)


def test_jobs_that_could_not_be_read_at_the_start_are_recalled(book, ended):
    earlier = JobBook([], lambda number, job: ended.append((number, job)))
    for after in range(3):
        earlier.start("samples", after)
        earlier.fail("long ago")
    past = [job for _, job in reversed(ended)]
    for _ in range(2):
        book.recall(past)
        assert [job["job"] for job in book.list()] == ["t-3", "t-2", "t-1"]
    book.start("samples", 7)
    assert book.list()[0]["job"] == "t-4"
