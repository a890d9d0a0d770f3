"""What the documents say exists, exists."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from starlette.routing import Route
from typer.testing import CliRunner

from daemon.__main__ import app
from daemon.config import Settings, load_settings
from daemon.errors import RequestError
from daemon.http import create_app
from daemon.power import PowerMonitor
from daemon.power_log import PowerLog
from daemon.power_metrics import HostMetrics, PowerMetrics
from daemon.store import Scrub
from daemon.store_metrics import StoreMetrics
from daemon.telemetry import Telemetry
from daemon.wiring.server import build_service
from tests.daemon_fixtures import open_store

ROOT = Path(__file__).parents[1]
API = (ROOT / "docs" / "api.md").read_text()
README = (ROOT / "README.md").read_text()
JETSON = (ROOT / "docs" / "jetson.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def test_every_route_is_documented(tmp_path: Path) -> None:
    config = tmp_path / "ffedge.toml"
    config.write_text(
        f'[model]\ninput_shape = [4]\nmax_classes = 2\n[store]\ndirectory = "{tmp_path}"\n'
    )
    service = build_service(load_settings(config), [sys.executable, "-c", ""])
    service.store.close()
    app = create_app(service)
    own = {"/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"}
    routes = {r.path: r.methods for r in app.routes if isinstance(r, Route) and r.path not in own}
    assert len(routes) >= 7
    for path, methods in routes.items():
        for method in (methods or set()) - {"HEAD"}:
            assert f"`{method} {path}`" in API, f"{method} {path} is not in docs/api.md"


def test_every_metric_is_documented_and_every_documented_one_exists(tmp_path: Path) -> None:
    telemetry = Telemetry(CollectorRegistry())
    monitor = PowerMonitor([], 1.0, PowerLog(tmp_path))
    telemetry.registry.register(PowerMetrics(monitor))
    telemetry.registry.register(HostMetrics({}))
    with closing(open_store(tmp_path)) as store:
        scrub = Scrub(store.path, store.retire_damaged, rows_per_second=0)
        scrub.report.passed_at = 0.0
        telemetry.registry.register(StoreMetrics(store, scrub))
        families = [*telemetry.registry.collect()]
    existing = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    documented = set(re.findall(r"`(ffedge_\w+)`", API))
    of_the_store = {
        name for name in documented if re.match(r"ffedge_samples?_([shqu]|retired)", name)
    }
    assert existing == documented - of_the_store


def test_every_error_code_is_documented() -> None:
    for leaf in RequestError.__subclasses__():
        row = next(line for line in API.splitlines() if line.startswith(f"| {leaf.status} |"))
        assert f"`{leaf.code}`" in row, f"{leaf.code} is not in docs/api.md under {leaf.status}"


def test_readme_begins_with_the_two_commands_that_the_makefile_has() -> None:
    commands = re.findall(r"^\$ (make \w+)", README, re.MULTILINE)
    assert commands[:2] == ["make demo", "make test"]
    for command in commands:
        assert re.search(rf"^{command.split()[1]}:", MAKEFILE, re.MULTILINE), command


def test_every_file_that_a_document_links_to_exists() -> None:
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_board_page_names_files_options_and_settings_that_exist() -> None:
    for name in set(re.findall(r"\b(deploy/[\w.]+\w)", JETSON)):
        assert (ROOT / name).exists(), name
    installer, uninstaller, dockerfile = (
        (ROOT / name).read_text()
        for name in ("deploy/install.sh", "deploy/uninstall.sh", "Dockerfile.l4t")
    )
    for option in ("--torch", "--jetpack"):
        assert f"{option} " in installer
    assert "--purge)" in uninstaller
    arguments = re.findall(r"^\| `([A-Z0-9_]+)`(?:, `([A-Z0-9_]+)`)?", JETSON, re.MULTILINE)
    named = {name for row in arguments for name in row if name}
    assert named == set(re.findall(r"^ARG (\w+)", dockerfile, re.MULTILINE))
    (jetson_stats,) = re.findall(r"^ARG JETSON_STATS=(.*)$", dockerfile, re.MULTILINE)
    assert f"`{jetson_stats}`" in JETSON  # the image's ...
    assert f"jetson-stats=={jetson_stats} " in JETSON  # ... and the host's
    settings = re.findall(r"`(model|store|server|learner|gate|log)\.(\w+)", JETSON)
    assert settings
    for section, key in settings:
        assert key in Settings.model_fields[section].annotation.model_fields, f"{section}.{key}"  # type: ignore[union-attr]


def test_docker_run_and_compose_say_the_same() -> None:
    (command,) = re.findall(r"docker run (.*?) ffedge:l4t\n", JETSON, re.DOTALL)
    compose = (ROOT / "deploy" / "compose.yaml").read_text()
    for option, line in {
        "--runtime nvidia": "runtime: nvidia",
        "--network host": "network_mode: host",
        "--init": "init: true",
        "--read-only": "read_only: true",
        "--tmpfs /tmp": "- /tmp",
        "--cap-drop ALL": "- ALL",
        "--security-opt no-new-privileges:true": "- no-new-privileges:true",
        "--shm-size 1g": "shm_size: 1g",
        "--memory 6g": "mem_limit: 6g",
        "--pids-limit 256": "pids_limit: 256",
        "--ulimit memlock=-1": "memlock: -1",
        "--stop-timeout 60": "stop_grace_period: 60s",
        "--restart unless-stopped": "restart: unless-stopped",
        "/etc/nv_tegra_release:/etc/nv_tegra_release:ro": "source: /etc/nv_tegra_release",
        "ffedge-state:/var/lib/ffedge": "target: /var/lib/ffedge",
        "FFEDGE_MODEL__INPUT_SHAPE": "FFEDGE_MODEL__INPUT_SHAPE",
    }.items():
        assert option in command
        assert line in compose
    assert "--mount type=bind,source=/run/jtop.sock" in command
    assert "--volume /run/jtop.sock" not in command


def test_every_module_that_the_architecture_names_exists() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    files = {
        path.name
        for folder in ("daemon", "engines", "models")
        for path in (ROOT / folder).rglob("*.py")
    }
    for name in re.findall(r"`(?:\w+/)?(\w+\.py)`", text):
        if not name.startswith("test_"):
            assert name in files, name


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["serve", "--help"],
        ["demo", "--help"],
        ["doctor", "--help"],
        ["status", "--help"],
        ["models", "--help"],
        ["rollback", "--help"],
        ["train", "--help"],
        ["import", "--help"],
        ["export", "--help"],
        ["version"],
    ],
)
def test_every_command_has_help(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "daemon", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.strip()


def test_the_commands_that_change_one_thing_have_help() -> None:
    for command in ("activate", "pause", "resume"):
        done = CliRunner().invoke(app, [command, "--help"])
        assert done.exit_code == 0
        assert "--url" in done.output
