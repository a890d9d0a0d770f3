"""Commands ask the daemon that the folder's configuration describes, or the one they are told."""

import subprocess
import sys

import pytest

from daemon.address import daemon_url

MODEL = "[model]\ninput_shape = [4]\nmax_classes = 2\n"


@pytest.mark.parametrize(
    ("server", "url"),
    [
        ("port = 9999", "http://127.0.0.1:9999"),
        ('host = "0.0.0.0"\nport = 7', "http://127.0.0.1:7"),
        ('host = "::"', "http://[::1]:8484"),
        ('host = "10.0.0.3"', "http://10.0.0.3:8484"),
    ],
)
def test_the_folders_configuration_says_where(tmp_path, monkeypatch, server, url):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ffedge.toml").write_text(f"{MODEL}[server]\n{server}\n")
    assert daemon_url(None) == url
    assert daemon_url("http://other:1") == "http://other:1"


def test_without_one_the_environment_says_where(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert daemon_url(None, {}) == "http://127.0.0.1:8484"
    assert daemon_url(None, {"FFEDGE_SERVER__PORT": "81"}) == "http://127.0.0.1:81"


@pytest.mark.parametrize("command", ["status", "import rows.csv", "export out.csv"])
def test_every_command_asks_there(tmp_path, command):
    (tmp_path / "ffedge.toml").write_text(f"{MODEL}[server]\nport = 9\n")
    done = subprocess.run(
        [sys.executable, "-m", "daemon", *command.split()],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "no daemon answers at http://127.0.0.1:9 (" in done.stderr
    assert "by --url" in done.stderr
