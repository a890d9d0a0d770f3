"""What every command here has in common: options, files, the table and the last line, exit status.

A command measures, writes its records as JSON, prints a table and, in the last line of standard
output, one JSON object; most draw a PNG too. With `--draw` it measures nothing and shows what its
file of records holds already.

Exit status: 0 done; 1 a trial failed (diverged, or its process died); 2 the command or the data
cannot be used; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from rich.console import Console, Group

from benchmarks.trial import TrialError
from daemon.errors import DataError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
_WIDEST_TABLE = 400

T = TypeVar("T")


class StoppedError(RuntimeError):
    """The run cannot go on.

    Args:
        message: One line for the user.
        exit_code: Status that the command ends with.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage page.

    Args:
        prog: How the command is called.
        description: What it does.
    """

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            StoppedError: Always.
        """
        raise StoppedError(f"{message} (--help lists the options)", EXIT_USAGE)


def listed(kind: Callable[[str], T], wanted: str) -> Callable[[str], tuple[T, ...]]:
    """A parser of comma-separated values, which are `wanted`."""

    def parse(text: str) -> tuple[T, ...]:
        try:
            return tuple(kind(part.strip()) for part in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(f"found {text!r}; wanted {wanted}") from None

    return parse


names = listed(str, "names with commas between")
integers = listed(int, "integers with commas between")
numbers = listed(float, "numbers with commas between, as 0.2,1.6")


def add_output(parser: Parser) -> None:
    """`--json`, `--plot` and `--draw`: where a command that draws puts what it finds."""
    add = parser.add_argument
    add("--json", type=Path, required=True, metavar="FILE", help="records go here; replaced")
    add("--plot", type=Path, metavar="PNG", help="without it beside the records")
    add("--draw", action="store_true", help="measure nothing; show the records that FILE holds")


def plot_path(asked: argparse.Namespace) -> Path:
    """Where the plot goes."""
    path: Path = asked.plot or asked.json.with_suffix(".png")
    return path


def records_of(asked: argparse.Namespace, measure: Callable[[], T]) -> T:
    """What `measure` finds and is written to `--json`, or with `--draw` what that file holds.

    Raises:
        TrialError: A file cannot be written, or read.
    """
    check_writable("--plot", plot_path(asked))
    if asked.draw:
        try:
            kept: T = json.loads(asked.json.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TrialError(f"--json {asked.json}: cannot be drawn: {error}") from error
        return kept
    check_writable("--json", asked.json)
    found = measure()
    write_json(asked.json, found)
    return found


def check_writable(option: str, path: Path) -> None:
    """Refuse what would only fail after minutes.

    Raises:
        TrialError: The file's folder is missing or cannot be written to.
    """
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise TrialError(f"{option} {path}: wanted a file in a folder that can be written to")


def write_json(path: Path, value: object) -> None:
    """Replace the file at once, so that a reader never sees half of it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def show(tables: Sequence[Group], summary: dict[str, Any]) -> None:
    """Tables, then the summary as the last line of standard output."""
    console = Console(width=_WIDEST_TABLE)  # a terminal may break lines; no figure is cut off
    for table in tables:
        console.print(table)
    print(json.dumps(summary), flush=True)


def finish(run: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None) -> int:
    """Do what a command line asks: one line on standard error instead of a traceback.

    Args:
        run: The command; raises `StoppedError`, `TrialError`, `DataError` or `OSError`.
        argv: Its arguments; None: the process's own.

    Returns:
        The exit status.
    """
    try:
        run(argv)
    except StoppedError as error:
        message, status = str(error), error.exit_code
    except (TrialError, DataError, OSError) as error:
        message, status = str(error), EXIT_USAGE
    except KeyboardInterrupt:
        message, status = "interrupted; the records so far are written", EXIT_INTERRUPTED
    else:
        return 0
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return status
