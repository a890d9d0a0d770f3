"""What runs where: checked in clean processes, because an import linter reads statements only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_packages_are_ours() -> None:
    """Another distribution installs a top-level `daemon` too."""
    import daemon
    import engines
    import models

    for package in (daemon, engines, models):
        assert Path(str(package.__file__)).parent.parent == ROOT


@pytest.mark.parametrize(
    "statement",
    [
        "import daemon.http",
        "import daemon.transfer.importing",
        "import engines",
        "import engines.tensorrt_predict",
        "import models",
    ],
)
def test_torch_is_loaded_only_by_the_engine_that_needs_it(statement: str) -> None:
    assert "torch" not in loaded_by(statement)


def test_the_learner_carries_no_web_server_and_no_pictures() -> None:
    modules = loaded_by("import daemon.learning.process")
    assert modules.isdisjoint({"fastapi", "starlette", "uvicorn", "PIL", "multipart"})


def test_answering_loads_no_compiler() -> None:
    """A server's first request would pay for it, and a device keep its memory."""
    of_three_rows = "torch.ones(3, 5, dtype=torch.int8)"  # padded: the kernel wants 17 and more
    modules = loaded_by(
        f"import torch; from engines.int8 import int8_matmul; x = {of_three_rows}; "
        "int8_matmul(x, x.t())"
    )
    assert "torch" in modules
    assert "torch._dynamo" not in modules


def test_a_learner_starts_without_what_it_does_not_need() -> None:
    """A restart waits for it; with a compiler or symbolic algebra it takes a fifth longer."""
    modules = loaded_by(
        "from engines import open_train_engine; from models import ModelSpec; "
        "open_train_engine(ModelSpec('mlp', (6,), 3, (8,)), seed=0)"
    )
    assert "torch" in modules
    assert modules.isdisjoint({"sympy", "torch._dynamo", "torch._inductor"})


def test_importing_the_command_line_is_light() -> None:
    modules = loaded_by("import daemon.__main__")
    assert modules.isdisjoint({"torch", "fastapi", "uvicorn", "sklearn", "httpx2"})


def test_a_transfer_is_a_client_and_loads_no_server() -> None:
    modules = loaded_by("import daemon.transfer.importing, daemon.transfer.exporting")
    assert modules.isdisjoint({"fastapi", "starlette", "uvicorn", "sqlite_utils", "PIL", "httpx2"})


def test_files_keep_to_a_size() -> None:
    for folder in ("daemon", "engines", "models", "benchmarks", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            lines = len(path.read_text().splitlines())
            assert lines <= 400, f"{path.name} has {lines} lines: split it, or say why here"


def test_a_wrong_configuration_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    config = tmp_path / "ffedge.toml"
    config.write_text("[model]\ninput_shape = [4]\nmax_classes = 2\nhiden = [8]\n")
    command = [sys.executable, "-m", "daemon", "serve", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unknown key 'model.hiden'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    config.unlink()
    missing = subprocess.run(command, capture_output=True, text=True, check=False)
    assert missing.returncode == 2
    assert "no configuration file" in missing.stderr
