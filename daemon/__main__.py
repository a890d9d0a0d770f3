"""The `ffedge` command; what its two processes are made of is put together in `wiring/`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import psutil
import typer

from daemon import __version__
from daemon.address import UrlOption, daemon_url
from daemon.config import load_settings
from daemon.config_warnings import config_warnings
from daemon.errors import ConfigError, FfedgeError
from daemon.logs import configure_logs
from daemon.model_commands import add_model_commands
from daemon.train_commands import add_train_commands
from daemon.transfer.command_line import add_transfer_commands

log = logging.getLogger(__name__)
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A daemon that learns on the device while it serves.",
)
add_transfer_commands(app)
add_model_commands(app)
add_train_commands(app)
ConfigOption = Annotated[Path, typer.Option(help="Configuration file (TOML).")]


def main() -> None:
    """Run the command line; a known error is one line on standard error and exit code 2."""
    try:
        app()
    except FfedgeError as error:
        sys.stderr.write(f"ffedge: {error}\n")
        sys.exit(2)


@app.command()
def serve(config: ConfigOption = Path("ffedge.toml")) -> None:
    """Take samples, learn them, answer predictions, until SIGTERM or Ctrl-C."""
    settings = load_settings(config)
    configure_logs(settings.log.level, settings.log.format)
    log.info(
        "ffedge starts",
        extra={"version": __version__, "settings": settings.model_dump(mode="json")},
    )
    for warning in config_warnings(settings, psutil.virtual_memory().total):
        log.warning(warning)
    from daemon.wiring.server import listen, run_server

    with listen(settings) as listener:
        run_server(settings, config, listener)


@app.command(hidden=True)
def learner(config: ConfigOption = Path("ffedge.toml")) -> None:
    """The learner process; started by `serve`, never by hand."""
    from daemon.wiring.learner import run_learner

    settings = load_settings(config)
    configure_logs(settings.log.level, settings.log.format)
    run_learner(settings)


@app.command()
def demo(
    keep: Annotated[bool, typer.Option(help="Leave the daemon running at the end.")] = False,
    json: Annotated[bool, typer.Option(help="Print one JSON object as the last line.")] = False,
) -> None:
    """Stream 1,797 handwritten digits into a fresh daemon and watch it learn."""
    try:
        from daemon.demo import run_demo
    except ImportError as error:
        todo = "in ffedge's checkout run make setup, or pip install '.[demo]'"
        raise ConfigError(f"the demo needs {error.name}: {todo}") from error
    sys.exit(run_demo(keep=keep, as_json=json))


@app.command()
def status(
    url: UrlOption = None,
    json: Annotated[bool, typer.Option(help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Show what a running daemon does and what the board takes."""
    from daemon.status import show_status

    show_status(daemon_url(url), as_json=json)


@app.command()
def doctor(
    config: ConfigOption = Path("ffedge.toml"),
    json: Annotated[bool, typer.Option(help="Print one JSON object as the last line.")] = False,
) -> None:
    """Look at everything that the daemon stands on; exit code 1 when something will not work."""
    from daemon.doctor import run_doctor

    sys.exit(run_doctor(config, as_json=json, say=typer.echo))


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


if __name__ == "__main__":
    main()
