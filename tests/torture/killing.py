"""F1: SIGKILL at random moments under load, restart, audit."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tests.running import RunningDaemon, wait_for
from tests.torture.ledger import Ledger, audit
from tests.torture.load import Load


@dataclass
class Killed:
    """What some kills showed.

    Args:
        cycles: Kills.
        acknowledged: Samples in the ledger.
        posts: Requests answered.
        ready_seconds: From each start to the first 200 of `/health/ready`.
        broken: Promises that were not kept.
    """

    cycles: int = 0
    acknowledged: int = 0
    posts: int = 0
    ready_seconds: list[float] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def kill_under_load(
    daemon: RunningDaemon,
    ledger_path: Path,
    cycles: int,
    seed: int,
    *,
    longest: float = 2.0,
    posts: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> Killed:
    """Kill the daemon `cycles` times, and audit its store after every kill.

    Args:
        daemon: Not started.
        ledger_path: Outside of what the daemon writes.
        cycles: Kills.
        seed: Of moments and of the clients' choices.
        longest: A kill falls U(0.05, longest) seconds after the first answer.
        posts: At the end, go on without kills until so many requests were answered.
        progress: Told a line from time to time.
    """
    killed = Killed()
    moment = random.Random(seed)
    with closing(Ledger(ledger_path)) as ledger, closing(Load(ledger, seed)) as load:
        while not killed.broken and (killed.cycles < cycles or load.posts < posts):
            started = time.monotonic()
            with daemon:
                if daemon.client.get("/health/ready").status_code == 200:
                    killed.ready_seconds.append(time.monotonic() - started)
                else:
                    killed.broken.append("not ready at its start")
                port = daemon.client.base_url.port
                assert port is not None
                if killed.cycles < cycles:
                    answered = load.posts
                    load.start(port)
                    wait_for(lambda answered=answered: load.posts > answered, "an answer")
                    time.sleep(moment.uniform(0.05, longest))
                    daemon.kill_group()
                    load.join()
                    killed.cycles += 1
                else:
                    load.start(port, most=(posts - load.posts) // len(load.clients) + 1)
                    load.join(600)
                    daemon.kill_group()
            killed.posts = load.posts
            found = audit(daemon.store, ledger.entries())
            killed.acknowledged = found.acknowledged
            killed.broken += found.broken() + load.wrong
            if killed.cycles % 10 == 0:
                progress(
                    f"{killed.cycles} kills, {found.acknowledged} samples acknowledged in "
                    f"{killed.posts} posts, broken: {killed.broken or 'nothing'}"
                )
    return killed
