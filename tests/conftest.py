"""Settings that every test shares."""

import os

# One thread: tests are small, and on a machine that does something else as well, threads that wait
# for one another take a hundred times longer. Before torch is imported, here or in a child.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.torture import filesystems

# No deadline: on a shared machine it would test the machine, not the code.
settings.register_profile("ffedge", deadline=None, max_examples=50)
settings.load_profile("ffedge")

# Option of a harness in tests/torture, its size in `make test`, in `make torture`, and of what.
TORTURE = (
    ("--power-cuts", 12, 2000, "power cuts under the store, and a twentieth under the daemon"),
    ("--io-points", 4, 1000, "file operations that fail in four ways, at most all there are"),
    ("--crash-states", 40, 10_000, "states that a crash could have left"),
    ("--damaged-logs", 2, 200, "logs that are cut or flipped at rest, databases with a flip"),
    ("--flips", 200, 5000, "rows with one bit flipped"),
    ("--fills", 1, 50, "times that a disk is filled, or turned read-only, and given back"),
    ("--jumps", 6, 200, "jumps of the wall clock"),
    ("--traces", 20, 1000, "machines that the governor keeps within limits for an hour"),
    ("--flaps", 10, 500, "times that telemetry goes and comes, in each of six ways"),
    ("--learner-kills", 2, 500, "kills of the learner under load, and a fifth as many stops"),
    ("--learner-ooms", 1, 50, "kills of the learner by the kernel, for memory"),
    ("--poison-runs", 0, 40, "daemons that each attack is tried on"),
    ("--resume-kills", 8, 100, "kills of a learner, wherever it is"),
    ("--swaps", 200, 10_000, "changes of the version that answers, under predictions"),
    ("--weight-mutations", 300, 5000, "ways to damage a weight file"),
    ("--swap-kills", 1, 200, "kills at each step of a version's life"),
    ("--retry-posts", 1500, 100_000, "requests, three of ten sent twice, across kills"),
)

# Files of more than ten seconds, the longest first: one that began last would keep one worker busy
# when the others have no more to do. By turns such as wait for daemons and such as compute. The
# first one builds pycuda where that was not done; those that need it too come when it is there.
LONGEST = (
    "test_cuda_chains.py",
    "test_cuda_placement.py",
    "torture/test_bugs.py",
    "test_fusion.py",
    "test_notify.py",
    "test_demo.py",
    "torture/test_learner_kills.py",
    "test_onnx_parity.py",
    "torture/test_poison.py",
    "test_network_contract.py",
    "test_end_to_end.py",
    "test_engine_contract.py",
    "test_power_daemon.py",
    "test_install.py",
    "test_tensorrt_predict.py",
    "torture/test_kill.py",
    "test_power_monitor.py",
    "test_jtop.py",
    "test_governor_daemon.py",
    "test_doctor.py",
    "torture/test_resume.py",
    "test_tensorrt_bindings.py",
    "torture/test_damage.py",
    "test_benchmarks.py",
    "test_transfer_daemon.py",
    "test_exact_products.py",
    "test_tensorrt_daemon.py",
    "torture/test_power_cut.py",
    "torture/test_full_disk.py",
    "test_unit_file.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kill-cycles",
        type=int,
        default=2,
        help="times the daemon is killed under load; make torture uses 300",
    )
    for name, default, full, help in TORTURE:
        text = f"{help}; make torture uses {full}"
        parser.addoption(name, type=int, default=default, help=text)
    parser.addoption("--torture-seed", type=int, default=0, help="of moments, choices and places")
    parser.addoption("--torture-json", help="file to which each harness adds what it found")
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
    last = len(LONGEST)
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, last))
    if not config.getoption("--every-failure"):
        for item in items:
            if item.get_closest_marker("every_failure"):
                item.add_marker(pytest.mark.skip(reason="one of a kind: run by --every-failure"))


@pytest.fixture
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[filesystems.Disk]:
    """A fresh file system; indirect parameter: its kind, and MiB where they matter."""
    kind, mebibytes = request.param if isinstance(request.param, tuple) else (request.param, None)
    if (reason := filesystems.missing(kind)) is not None:
        pytest.skip(reason)
    with filesystems.mounted(kind, tmp_path, mebibytes) as disk:
        yield disk
