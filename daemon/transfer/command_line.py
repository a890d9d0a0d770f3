"""The commands `ffedge import` and `ffedge export`; what they need is loaded when one runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from daemon.address import UrlOption, daemon_url


def add_transfer_commands(app: typer.Typer) -> None:
    """Add both."""
    app.command("import")(_import)
    app.command("export")(_export)


def _import(
    path: Annotated[
        Path,
        typer.Argument(help="ImageFolder folder or .zip, IDX folder or file, .csv, .npz, .ndjson."),
    ],
    url: UrlOption = None,
    source: Annotated[str | None, typer.Option(help="Default: the path's last part.")] = None,
    label_column: Annotated[
        str | None,
        typer.Option(help="CSV: name, or number from 1; NPZ: name. Default: last column; y."),
    ] = None,
    strict: Annotated[bool, typer.Option(help="Stop at the first row that is refused.")] = False,
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds that the daemon may be busy or away.")
    ] = 120,
    json: Annotated[bool, typer.Option(help="Print one JSON object as the last line.")] = False,
) -> None:
    """Send a labelled data set to a running daemon; interrupted and run again, it goes on."""
    from daemon.transfer.importing import run_import

    sys.exit(
        run_import(
            path,
            url=daemon_url(url),
            source=source,
            label_column=label_column,
            strict=strict,
            as_json=json,
            patience_seconds=patience,
        )
    )


def _export(
    path: Annotated[Path, typer.Argument(help="What to write: .ndjson, .csv or .npz.")],
    url: UrlOption = None,
    label: Annotated[str | None, typer.Option(help="Only samples with this label.")] = None,
    source: Annotated[str | None, typer.Option(help="Only samples from this source.")] = None,
    after_seq: Annotated[int, typer.Option(min=0, help="Only samples behind this one.")] = 0,
    json: Annotated[bool, typer.Option(help="Print one JSON object as the last line.")] = False,
) -> None:
    """Write a running daemon's samples to a file, which appears whole or not at all."""
    from daemon.transfer.exporting import run_export

    sys.exit(run_export(path, daemon_url(url), label, source, after_seq, as_json=json))
