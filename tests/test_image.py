"""The container image: linted, its parts in step with the rest of the repository.

Whether it builds and finds the GPU, only a board can say.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from daemon import __version__
from daemon.config import ServerSettings, load_settings
from tests.running import RunningDaemon
from tests.tools import tool

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (ROOT / "Dockerfile.l4t").read_text()
UNIT = (DEPLOY / "ffedge.service").read_text()
INSTALL = (DEPLOY / "install.sh").read_text()
# Instructions, each on one line, without comments.
INSTRUCTIONS = [
    line.split(maxsplit=1)
    for line in re.sub(r"\s*\\\n\s*", " ", re.sub(r"(?m)^#.*\n", "", DOCKERFILE)).splitlines()
    if line
]


def instructions(name: str) -> list[str]:
    return [rest for keyword, rest in INSTRUCTIONS if keyword == name]


def unit(key: str) -> str:
    found = re.findall(rf"(?m)^{key}=(.*)$", UNIT)
    assert len(found) == 1, key
    return str(found[0])


def test_hadolint_finds_nothing() -> None:
    command = [tool("hadolint"), "--no-color", "--failure-threshold", "style"]
    done = subprocess.run(
        [*command, str(ROOT / "Dockerfile.l4t")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def compose(*names: str, **variables: str) -> dict[str, Any]:
    """The one service of a compose file, checked against the specification."""
    compose_spec = pytest.importorskip("compose_spec", reason="pip install '.[dev]' brings it")
    (name,) = names
    text = re.sub(
        r"\$\{(\w+)(?::[-?]([^}]*))?\}",
        lambda found: variables.get(found[1], found[2] or ""),
        (DEPLOY / name).read_text(),
    )
    parsed = compose_spec.PyCompose.from_yaml(text)
    parsed.validate()
    service: dict[str, Any] = parsed.to_dict()["services"]["ffedge"]
    return service


def test_the_compose_file_keeps_to_the_specification_and_holds_the_container_tight() -> None:
    service = compose("compose.yaml", RENDER_GID="104")
    assert service["image"] == "ffedge:l4t"
    build = service["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == ROOT / "Dockerfile.l4t"
    assert service["runtime"] == "nvidia"
    assert service["read_only"] is True
    assert service["init"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["network_mode"] == "host"
    targets = {volume["target"]: volume for volume in service["volumes"]}
    assert targets["/var/lib/ffedge"]["type"] == "volume"
    assert targets["/etc/nv_tegra_release"]["read_only"] is True
    assert "/run/jtop.sock" not in targets  # a board without jtop must start too


def test_the_jtop_socket_is_never_made_as_a_directory() -> None:
    (mount,) = compose("compose.jtop.yaml", JTOP_GID="996")["volumes"]
    assert (mount["type"], mount["source"]) == ("bind", "/run/jtop.sock")
    # Told from the text: the parser leaves a false out.
    for name in ("compose.jtop.yaml", "compose.yaml"):
        text = re.sub(r" *#.*\n", "", (DEPLOY / name).read_text())
        assert text.count("type: bind") == 1
        assert re.search(r"bind:\n +create_host_path: false\n", text)


def test_settings_named_outside_the_code_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the image's environment and in compose's: loaded as the daemon would."""
    environment = dict(re.findall(r"\b(FFEDGE_\w+)=(\S+)", " ".join(instructions("ENV"))))
    assert environment == {"FFEDGE_STORE__DIRECTORY": "/var/lib/ffedge"}
    environment |= compose("compose.yaml", RENDER_GID="104")["environment"]
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    config = tmp_path / "ffedge.toml"
    config.write_text((DEPLOY / "ffedge.toml").read_text())
    settings = load_settings(config)
    assert settings.store.directory == Path("/var/lib/ffedge")
    assert settings.model.input_shape == (64,)


def test_everything_that_is_copied_exists_and_reaches_the_build() -> None:
    copies = [words.split() for words in instructions("COPY")]
    sources = [
        source
        for words in copies
        if not any(word.startswith("--from") for word in words)
        for source in words[:-1]
    ]
    assert {"pyproject.toml", "constraints.txt", "daemon", "engines", "models", "deploy"} <= {
        *sources
    }
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored, f".dockerignore keeps {source} from the build"
    # What the installer takes from the checkout is among them.
    taken = re.search(r"cp -r (.*) \"\$package\"", INSTALL)
    assert taken
    for name in taken[1].split():
        assert (ROOT / name).exists()
        assert name in sources


def test_user_group_and_folders_are_the_same_everywhere() -> None:
    assert (unit("User"), unit("Group"), unit("StateDirectory")) == ("ffedge", "ffedge", "ffedge")
    for script in (INSTALL, " ".join(instructions("RUN"))):
        for words in (
            "--home-dir /var/lib/ffedge",
            "--shell /usr/sbin/nologin ffedge",
            "--gid ffedge",
        ):
            assert words in script
    assert set(unit("SupplementaryGroups").split()) < set(
        re.findall(r"for group in (.*); do", INSTALL)[0].split()
    )
    # The image's user goes by number, so that a cluster can see that it is not root.
    (user,) = instructions("USER")
    runs = " ".join(instructions("RUN"))
    assert user == "8484:8484"
    assert "groupadd --system --gid 8484 ffedge" in runs
    assert "useradd --system --uid 8484 --gid ffedge" in runs
    assert instructions("VOLUME") == ["/var/lib/ffedge"]
    assert unit("WorkingDirectory") == "/var/lib/ffedge"


def test_the_program_and_its_options_are_the_same_everywhere() -> None:
    scripts = re.findall(
        r'(?m)^(\w+) = "daemon\.__main__:main"', (ROOT / "pyproject.toml").read_text()
    )
    assert scripts == ["ffedge"]
    command = unit("ExecStart").split()
    entry = json.loads(instructions("ENTRYPOINT")[0]) + json.loads(instructions("CMD")[0])
    assert command == entry
    assert command[0] == "/opt/ffedge/bin/ffedge"
    assert "environment=$root/opt/ffedge configuration=$root/etc/ffedge" in INSTALL
    done = subprocess.run(
        [sys.executable, "-m", "daemon", *command[1:]], capture_output=True, text=True, check=False
    )
    assert "no configuration file /etc/ffedge/ffedge.toml" in done.stderr


def test_both_jetpacks_are_stages_of_the_one_file_on_named_tags() -> None:
    defaults = dict(word.split("=", 1) for word in instructions("ARG") if "=" in word)
    assert defaults["JETPACK6_IMAGE"] == "nvcr.io/nvidia/l4t-jetpack:r36.4.0"
    assert defaults["JETPACK7_IMAGE"] == "ubuntu:24.04"
    stages = [line.split() for line in instructions("FROM")]
    names = [words[-1] for words in stages]
    assert names == ["jetpack6", "jetpack7", "build", "runtime"]
    assert f"jetpack{defaults['JETPACK']}" in names
    # Installed by the same script, so that the two ways onto a board cannot differ.
    assert any("deploy/install.sh --no-start --jetpack" in run for run in instructions("RUN"))
    assert "pycuda==" in INSTALL
    assert "pycuda==" not in DOCKERFILE
    assert "extras=onnx" in INSTALL  # what TensorRT engines are built from
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert re.search(r"^onnx = \[", pyproject, re.MULTILINE)


def test_the_label_names_this_version() -> None:
    assert f'org.opencontainers.image.version="{__version__}"' in DOCKERFILE


def test_nothing_secret_is_asked_for() -> None:
    for instruction in instructions("ARG") + instructions("ENV"):
        assert not re.search(r"(?i)token|secret|password|key", instruction)


def test_the_health_check_tells_a_daemon_that_lives_from_one_that_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (check,) = instructions("HEALTHCHECK")
    program, *arguments = json.loads(check.partition("CMD ")[2])
    assert program == "/opt/ffedge/bin/python"
    with RunningDaemon(tmp_path) as daemon:
        monkeypatch.setenv("FFEDGE_SERVER__PORT", str(daemon.client.base_url.port))
        assert subprocess.run([sys.executable, *arguments], check=False).returncode == 0
        daemon.kill_group()
        dead = subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
        assert dead.returncode == 1
    assert f"'FFEDGE_SERVER__PORT', {ServerSettings().port})" in check
