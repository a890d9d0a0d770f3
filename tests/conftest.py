"""Settings that every test shares."""

import os

# One thread: tests are small, and on a machine that does something else as well, threads that wait
# for one another take a hundred times longer. Before torch is imported, here or in a child.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# No deadline: on a shared machine it would test the machine, not the code.
settings.register_profile("ffedge", deadline=None, max_examples=50)
settings.load_profile("ffedge")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kill-cycles",
        type=int,
        default=4,
        help="times the daemon is killed under load; make torture uses 20",
    )
    parser.addoption(
        "--load-seconds",
        type=float,
        default=1.0,
        help="of each load in test_overload.py; from 20 on it must reach the promised figures",
    )
    parser.addoption(
        "--onnx-inputs",
        type=int,
        default=160,
        help="samples that each exported network is asked for; make torture uses 10000",
    )
    parser.addoption(
        "--bad-bodies",
        type=int,
        default=300,
        help="bad requests that a daemon must refuse; make torture uses 10000",
    )
    parser.addoption(
        "--decoder-runs",
        type=int,
        default=2000,
        help="bad requests for the decoders alone; make torture uses 1000000",
    )
    parser.addoption(
        "--every-chain",
        action="store_true",
        help="compile every fused chain and a whole engine: minutes; else two chains and no engine",
    )
    parser.addoption(
        "--every-failure",
        action="store_true",
        help="every way in which power readings fail, on every jtop: minutes; else one of a kind",
    )


def pytest_configure(config: pytest.Config) -> None:
    failure = "every_failure: one more of a kind of failure, run by --every-failure"
    config.addinivalue_line("markers", failure)
    config.addinivalue_line("markers", "newest_first: on older jtops by --every-failure only")
    config.addinivalue_line("markers", "compiled: runs torch.compile, seconds and more a chain")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--every-failure"):
        for item in items:
            if item.get_closest_marker("every_failure"):
                item.add_marker(pytest.mark.skip(reason="one of a kind: run by --every-failure"))
