"""A process that has imported everything, and forks: a daemon in 0.3 s in place of 3 s.

    python -m tests.torture.zygote

It reads one JSON order a line and answers one line. A child is in all else a process of its own: a
session, a log, an environment, arguments, and its death. Harnesses that need hundreds of daemons,
or a store in a process that ends without warning, take them from here; restart times and real
learners are measured on daemons that were started as a user starts them (`test_kill.py`).
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback


def _become(order: dict) -> int:
    """In the child: run `order["target"]`, "module:function", as a program."""
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.environ.update(order.get("environment", {}))
    sys.argv = [order["target"], *order["arguments"]]
    module, _, function = order["target"].partition(":")
    code = 0
    try:
        getattr(importlib.import_module(module), function)()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        if isinstance(end.code, str):
            sys.stderr.write(end.code + "\n")
    except BaseException:  # noqa: BLE001 - a program ends so, with a traceback
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _serve_orders() -> None:
    ended: dict[int, int] = {}
    for line in sys.stdin:
        order = json.loads(line)
        if "target" in order:
            pid = os.fork()
            if pid == 0:
                os._exit(_become(order))
            answer: dict = {"pid": pid}
        else:
            pid = order["poll"]
            if pid not in ended:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    ended[pid] = os.waitstatus_to_exitcode(status)
            answer = {"code": ended.get(pid)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)
    _serve_orders()
