"""What the installer tells Python and pip on a board, by a Python that writes it down."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_install import DEPLOY, ROOT, lines, needs_root, root, run, wheel

__all__ = ["root", "wheel"]  # fixtures, used by name

pytestmark = needs_root


def stand_in(root: Path) -> Path:
    """A Python that writes down how pip is called, in place of installing gigabytes.

    Returns:
        Where it writes to, beside the constraints that pip was handed.
    """
    program, calls = root / "opt" / "ffedge" / "bin" / "python", root / "calls"
    program.parent.mkdir(parents=True)
    (program.parents[1] / "pyvenv.cfg").write_text("include-system-site-packages = true\n")
    program.write_text(
        f"""#!/bin/sh
case $* in *python_version*) exec {sys.executable} "$@";; *"pip --version") exit;; esac
echo "$* PATH=$PATH LIBRARY_PATH=$LIBRARY_PATH" >>{calls}
for word; do case $word in */constraints.txt) cp "$word" {root};; esac; done
"""
    )
    program.chmod(0o755)
    return calls


@needs_root
@pytest.mark.parametrize(
    ("release", "numpy"),
    [("# R36 (release), REVISION: 4.3", "numpy==1.26.4"), ("", None)],
    ids=["JetPack 6", "no board"],
)
def test_what_pip_is_told(root: Path, wheel: Path, release: str, numpy: str | None) -> None:
    if release:
        (root / "etc" / "nv_tegra_release").write_text(release)
    calls = stand_in(root)
    arguments = ["--root", str(root), "--wheel", str(wheel), "--python", sys.executable]
    assert run("install.sh", *arguments).returncode == 0
    told = calls.read_text()
    pins = (root / "constraints.txt").read_text().splitlines()
    stock = (ROOT / "constraints.txt").read_text().splitlines()
    assert (f"{wheel}[onnx]" in told) is (numpy is not None)  # what TensorRT engines are built from
    if numpy is None:
        assert pins == stock
        assert "torch" not in told
        return
    assert [pin for pin in pins if pin.startswith("numpy")] == [numpy]
    assert not [pin for pin in pins if pin.startswith("torch=")]
    replaced = ("ml_dtypes=", "numpy=", "torch=")
    assert {pin for pin in stock if not pin.startswith(replaced)} < {*pins}
    assert not [pin for pin in pins if pin.startswith("ml_dtypes=")]  # of numpy 2
    torch = "install --no-deps --index-url https://pypi.jetson-ai-lab.io/jp6/cu126 torch==2.8.0"
    assert told.index(torch) < told.index("install --constraint")
    assert "sm_87" in told.partition("install --force-reinstall --no-deps")[2]


def put_nvcc(root: Path) -> Path:
    """Returns the folder of CUDA."""
    cuda = root / "usr" / "local" / "cuda"
    (cuda / "bin").mkdir(parents=True)
    (cuda / "bin" / "nvcc").touch(0o755)
    return cuda


@needs_root
def test_a_board_gets_pycuda_compiled_with_its_own_nvcc(root: Path, wheel: Path) -> None:
    (root / "etc" / "nv_tegra_release").write_text("# R36 (release), REVISION: 4.3")
    calls, cuda = stand_in(root), put_nvcc(root)
    done = run("install.sh", "--root", str(root), "--wheel", str(wheel))
    assert done.returncode == 0, done.stderr
    (told,) = [line for line in calls.read_text().splitlines() if "pycuda" in line]
    assert re.search(r"install --constraint \S+/constraints.txt pycuda==2026.1 ", told)
    assert f" PATH={cuda}/bin:{os.environ['PATH']} LIBRARY_PATH={cuda}/lib64/stubs" in told


@needs_root
def test_a_board_without_nvcc_is_told_what_it_goes_without(root: Path, wheel: Path) -> None:
    (root / "etc" / "nv_tegra_release").write_text("# R36 (release), REVISION: 4.3")
    calls = stand_in(root)
    done = run("install.sh", "--root", str(root), "--wheel", str(wheel))
    assert done.returncode == 0, done.stderr
    assert f"no {root}/usr/local/cuda/bin/nvcc, so no pycuda: torch will serve" in done.stdout
    assert "pycuda" not in calls.read_text()


@needs_root
def test_a_pycuda_that_does_not_compile_ends_the_installation(root: Path, wheel: Path) -> None:
    (root / "etc" / "nv_tegra_release").write_text("# R36 (release), REVISION: 4.3")
    stand_in(root)
    put_nvcc(root)
    program = root / "opt" / "ffedge" / "bin" / "python"
    program.write_text(program.read_text() + "case $* in *pycuda*) exit 1;; esac\n")
    done = run("install.sh", "--root", str(root), "--wheel", str(wheel))
    assert done.returncode == 1
    assert "pycuda does not compile, see above: it wants apt's g++ and python3-dev" in done.stderr


@needs_root
def test_another_python_than_the_environments_is_refused(root: Path, wheel: Path) -> None:
    calls = stand_in(root)
    program = root / "opt" / "ffedge" / "bin" / "python"
    answer = f'exec {sys.executable} "$@"'
    assert answer in program.read_text()
    program.write_text(program.read_text().replace(answer, "echo 3.9.1; exit"))
    arguments = ["--root", str(root), "--wheel", str(wheel)]
    done = run("install.sh", *arguments, "--python", sys.executable)
    assert done.returncode == 1
    environment, here = program.parents[1], platform.python_version()
    assert f"{environment} is of Python 3.9.1 and {sys.executable} is {here}: rm -r" in done.stderr
    assert not calls.exists()
    assert not lines(root / "etc" / "passwd", "ffedge")
    assert run("install.sh", *arguments).returncode == 0  # an upgrade: nobody asked for another


@needs_root
def test_no_module_of_the_current_folder_runs_as_root(
    root: Path, wheel: Path, tmp_path: Path
) -> None:
    for name in ("importlib", "pip", "platform", "sys", "torch", "venv"):
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path / 'ran')!r}, 'a').write('{name} ')"
        )
    arguments = ["--root", str(root), "--wheel", str(wheel), "--python", sys.executable]
    for _ in range(2):  # the second finds an environment
        command = [str(DEPLOY / "install.sh"), *arguments]
        subprocess.run(command, check=True, cwd=tmp_path, env=os.environ | {"PIP_NO_DEPS": "1"})
    assert not (tmp_path / "ran").exists()
