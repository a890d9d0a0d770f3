"""The installer and the uninstaller, run for real into a root file system in a temporary folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from daemon.config import load_settings
from tests.tools import tool

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
SCRIPTS = sorted([*DEPLOY.glob("*.sh"), ROOT / ".ci" / "run"])


def test_shellcheck_finds_nothing() -> None:
    assert len(SCRIPTS) == 3
    command = [tool("shellcheck"), "--severity=style", *map(str, SCRIPTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("useradd") is None,
    reason="making users in a root file system needs to be root, and useradd",
)


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(DEPLOY / script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


@pytest.mark.parametrize("script", ["install.sh", "uninstall.sh"])
def test_they_tell_how_they_are_used(script: str) -> None:
    assert "usage: sudo deploy/" in run(script, "--help").stdout
    unknown = run(script, "--rooot")
    assert unknown.stderr.startswith("ffedge: unknown option --rooot")
    # Where the empty value passes, the unknown option stops it: this machine stays as it is.
    for done in (run(script, "--root"), run(script, "--root", "", "--rooot")):
        assert (done.returncode, done.stderr) == (1, "ffedge: --root wants a directory\n")
    for option in ("--wheel", "--jetpack", "--torch", "--torch-index", "--extras", "--python"):
        if script == "install.sh":
            assert f"{option} wants a value" in run(script, option, "", "--rooot").stderr


@needs_root
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--root", "{root}/etc"], "holds no /etc"),
        (["--root", "{root}", "--wheel", "absent.whl"], "no wheel absent.whl"),
        (["--root", "{root}", "--python", "absent"], "no absent: name a Python"),
        (["--root", "{root}", "--python", "false"], "is not Python 3.10 to 3.13"),
        (["--root", "{root}", "--python", "/bin/true"], "/bin/true is not Python 3.10 to 3.13"),
        (["--root", "{root}", "--python", "{bare}", "--torch", "system"], "torch cannot be"),
        (["--root", "{root}", "--jetpack", "5"], "--jetpack is 6, 7 or none, not 5"),
    ],
    ids=["root", "wheel", "no python", "old python", "true", "no torch", "jetpack"],
)
def test_what_is_wrong_is_said_before_anything_is_changed(
    root: Path, arguments: list[str], says: str
) -> None:
    bare = root.parent / "bare" / "bin" / "python"  # a Python without torch
    if "{bare}" in arguments:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare.parents[1]], check=True)
    before = sorted(root.rglob("*"))
    done = run("install.sh", *(argument.format(root=root, bare=bare) for argument in arguments))
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(root.rglob("*")) == before


@needs_root
@pytest.mark.parametrize("script", ["install.sh", "uninstall.sh"])
@pytest.mark.parametrize("fault", ["passwd", "group", "read-only"])
def test_a_root_that_will_not_do_is_left_as_it_is(root: Path, script: str, fault: str) -> None:
    command = [str(DEPLOY / script), "--root", str(root)]
    says = f"{root} holds no /etc/{fault}: --root wants a root file system"
    if fault == "read-only":
        says = f"{root}/etc is read-only: mount it writable first"
        mount = f"mount --bind {root} {root} && mount -o remount,ro,bind {root}"
        mounted = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]
        if subprocess.run([*mounted, "true"], capture_output=True, check=False).returncode:
            pytest.skip("this machine lets nobody mount")
        command = [*mounted, *command]
    else:
        (root / "etc" / fault).unlink()
    before = sorted(root.rglob("*"))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"ffedge: {says}\n")
    assert sorted(root.rglob("*")) == before


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This checkout as a wheel, built from a copy as the installer does."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("daemon", "engines", "models"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder)]
    subprocess.run([*command, str(source)], check=True)
    (built,) = folder.glob("ffedge-*.whl")
    return built


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """The least that useradd and systemctl take for a root file system."""
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc" / "group").write_text("root:x:0:\nvideo:x:44:\n")
    (root / "etc" / "shadow").write_text("root:*:19000:0:99999:7:::\n")
    (root / "etc" / "gshadow").write_text("root:*::\nvideo:!::\n")
    yield root
    shutil.rmtree(root)


def install(root: Path, wheel: Path, *more: str) -> str:
    """Without the packages that ours needs: they are gigabytes, and pip's own business."""
    arguments = ["--root", str(root), "--wheel", str(wheel), "--python", sys.executable, *more]
    done = run("install.sh", *arguments, PIP_NO_DEPS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def lines(path: Path, name: str) -> list[list[str]]:
    entries = [line.split(":") for line in path.read_text().splitlines()]
    return [entry for entry in entries if entry[0] == name]


def owner(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_uid, status.st_gid, status.st_mode & 0o7777


@needs_root
def test_install_twice_uninstall_twice_purge_twice(root: Path, wheel: Path) -> None:
    said = install(root, wheel)
    assert "set input_shape and max_classes" in said

    # The user, and the groups that the unit names.
    ((_, _, uid, gid, _, home, shell),) = lines(root / "etc" / "passwd", "ffedge")
    assert (home, shell) == ("/var/lib/ffedge", "/usr/sbin/nologin")
    for name in ("video", "render", "jtop", "ffedge"):
        ((_, _, _, members),) = lines(root / "etc" / "group", name)
        assert members == ("" if name == "ffedge" else "ffedge")
    assert lines(root / "etc" / "group", "ffedge")[0][2] == gid
    user, group = int(uid), int(gid)
    assert user > 0

    # The files: the daemon may write to its state alone, and nobody else reads it.
    config, state = root / "etc" / "ffedge" / "ffedge.toml", root / "var" / "lib" / "ffedge"
    unit = root / "etc" / "systemd" / "system" / "ffedge.service"
    assert owner(config) == (0, group, 0o640)
    assert owner(config.parent) == (0, group, 0o750)
    assert owner(state) == (user, group, 0o750)
    assert owner(unit) == (0, 0, 0o644)
    assert unit.read_bytes() == (DEPLOY / "ffedge.service").read_bytes()
    assert load_settings(config, {}).store.directory == Path("/var/lib/ffedge")
    program = root / "opt" / "ffedge" / "bin" / "ffedge"
    assert os.access(program, os.X_OK)
    assert owner(program)[:2] == (0, 0)
    if shutil.which("systemctl"):
        wanted = unit.parent / "multi-user.target.wants" / "ffedge.service"
        assert Path(os.readlink(wanted)) == Path("/etc/systemd/system/ffedge.service")

    # The program: made for the root it will run in, able to see the system's packages, and whole.
    assert program.read_text().startswith("#!/opt/ffedge/bin/python")
    pyvenv = (root / "opt" / "ffedge" / "pyvenv.cfg").read_text()
    assert "include-system-site-packages = true" in pyvenv
    for path in [root / "opt" / "ffedge" / "pyvenv.cfg", *program.parent.iterdir()]:
        if not path.is_symlink():
            assert str(root).encode() not in path.read_bytes(), path.name
    done = subprocess.run(
        [str(program.parent / "python"), "-m", "daemon", "version"],
        env={"PYTHONPATH": sysconfig.get_path("purelib")},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("0."), done.stderr

    # An upgrade: what an operator wrote and what the daemon learned stay as they are.
    config.write_text(config.read_text().replace("input_shape = [64]", "input_shape = [12]"))
    sample = state / "ffedge.sqlite"
    sample.write_bytes(b"samples")
    os.chown(sample, user, group)
    accounts = [(root / "etc" / name).read_text() for name in ("passwd", "group")]
    assert "set input_shape" not in install(root, wheel)
    assert "input_shape = [12]" in config.read_text()
    assert owner(config) == (0, group, 0o640)
    assert sample.read_bytes() == b"samples"
    assert [(root / "etc" / name).read_text() for name in ("passwd", "group")] == accounts

    nothing = f"ffedge: nothing is installed in {root}\n"
    for again in range(2):
        done = run("uninstall.sh", "--root", str(root))
        assert (done.returncode, done.stderr) == (0, "")
        assert (done.stdout == nothing) is bool(again)
        assert not (root / "opt" / "ffedge").exists()
        assert not unit.exists()
        assert not list(unit.parent.glob("*.wants/ffedge.service"))
        assert sample.exists()
        assert config.exists()
        assert lines(root / "etc" / "passwd", "ffedge")
    for again in range(2):
        done = run("uninstall.sh", "--purge", "--root", str(root))
        assert (done.returncode, done.stderr) == (0, "")
        assert (done.stdout == nothing) is bool(again)
        assert not state.exists()
        assert not config.parent.exists()
        assert not lines(root / "etc" / "passwd", "ffedge")
        assert not lines(root / "etc" / "group", "ffedge")
    assert len(lines(root / "etc" / "group", "jtop")) == 1  # others may use it


@needs_root
@pytest.mark.parametrize(
    ("release", "says"),
    [
        ("# R39 (release), REVISION: 2.0", "JetPack 7: name a torch with code for sm_87"),
        ("# R35 (release), REVISION: 4.1", "neither R36 nor R39"),
    ],
    ids=["no torch known", "too old"],
)
def test_what_cannot_work_on_a_board_is_refused_before_anything_is_changed(
    root: Path, wheel: Path, release: str, says: str
) -> None:
    (root / "etc" / "nv_tegra_release").write_text(release)
    arguments = ["--root", str(root), "--wheel", str(wheel), "--python", sys.executable]
    done = run("install.sh", *arguments)
    assert done.returncode == 1
    assert says in done.stderr
    assert not (root / "opt").exists()
    assert not lines(root / "etc" / "passwd", "ffedge")


@needs_root
def test_a_torch_without_code_for_the_board_stops_the_installation(root: Path, wheel: Path) -> None:
    """The torch of this environment stands in: it is a real one, and built for other machines."""
    (root / "etc" / "nv_tegra_release").write_text("# R36 (release), REVISION: 4.3")
    environment = root / "opt" / "ffedge"
    command = [sys.executable, "-m", "venv", "--system-site-packages", str(environment)]
    subprocess.run(command, check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "torch_here.pth").write_text(sysconfig.get_path("purelib"))
    arguments = ["--root", str(root), "--wheel", str(wheel), "--python", sys.executable]
    # The second asks pip for what is there already: as if just installed.
    for torch in ("system", "torch"):
        done = run("install.sh", *arguments, "--torch", torch, PIP_NO_DEPS="1", PIP_NO_INDEX="1")
        assert done.returncode == 1
        assert re.fullmatch(r"ffedge: torch .*, not for sm_87 .*: name another.*\n", done.stderr)
        assert bool(lines(root / "etc" / "passwd", "ffedge")) is (torch != "system")
        assert not [*packages.glob("ffedge-*")]
    assert not (root / "etc" / "systemd").exists()


@needs_root
def test_an_installation_that_was_interrupted_can_be_run_again(root: Path, wheel: Path) -> None:
    """Killed in `python -m venv`: before pip is there, and before the configuration is whole."""
    environment = root / "opt" / "ffedge"
    for options in (["--without-pip", "--system-site-packages"], ["--clear"]):
        subprocess.run([sys.executable, "-m", "venv", *options, str(environment)], check=True)
        install(root, wheel)
        assert "include-system-site-packages = true" in (environment / "pyvenv.cfg").read_text()


def test_what_the_installer_pins_is_accepted_by_the_package() -> None:
    wanted = {r.name: r.specifier for r in map(Requirement, metadata.requires("ffedge") or [])}
    text = (DEPLOY / "install.sh").read_text()
    pins = [Requirement(pin) for pin in re.findall(r"\b((?:numpy|torch)[=<>]=[\d.,<>=]+)", text)]
    assert [pin.name for pin in pins] == ["numpy", "torch", "numpy"]
    for pin in pins:
        lowest = min(spec.version for spec in pin.specifier if spec.operator in ("==", ">="))
        assert wanted[pin.name].contains(lowest), pin
