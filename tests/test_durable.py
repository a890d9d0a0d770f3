"""A file is replaced whole or not at all, and is on disk before its name says so."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from daemon.durable import replace_file


def fail(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.fixture
def steps(monkeypatch):
    """Names the durable steps in the order in which they happen, and lets them happen."""
    seen: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        mode = os.fstat(descriptor).st_mode
        seen.append("sync folder" if stat.S_ISDIR(mode) else f"sync {os.fstat(descriptor).st_size}")
        fsync(descriptor)

    def noted_replace(self: Path, target: Path) -> Path:
        seen.append(f"rename to {target.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    return seen


@pytest.mark.parametrize("content", [b"", b"short", bytes(range(256)) * 4096])
@pytest.mark.parametrize("old", [None, b"old and longer" * 100])
def test_the_content_is_synced_before_the_rename_and_the_folder_after(
    tmp_path, steps, old, content
):
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    replace_file(path, content)
    assert path.read_bytes() == content
    assert steps == [f"sync {len(content)}", "rename to file", "sync folder"]
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(
    "break_step",
    [
        lambda patch: patch.setattr(Path, "open", fail),
        lambda patch: patch.setattr(os, "fsync", fail),
        lambda patch: patch.setattr(Path, "replace", fail),
    ],
    ids=["open", "sync", "rename"],
)
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_step_that_fails_leaves_the_old_content_and_nothing_else(tmp_path, old, break_step):
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    with pytest.MonkeyPatch.context() as patch:
        break_step(patch)
        with pytest.raises(OSError, match="No space left"):
            replace_file(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ([] if old is None else ["file"])
    assert old is None or path.read_bytes() == old


def test_a_full_disk_while_writing_leaves_the_old_content(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    limit = 4096
    with pytest.MonkeyPatch.context() as patch:
        real = Path.open

        class Full:
            def __init__(self, file) -> None:
                self._file = file

            def __enter__(self):
                return self

            def __exit__(self, *_: object) -> None:
                self._file.close()

            def write(self, content: bytes) -> None:
                self._file.write(content[:limit])
                fail()

        patch.setattr(Path, "open", lambda self, mode: Full(real(self, mode)))
        with pytest.raises(OSError, match="No space left"):
            replace_file(path, bytes(2 * limit))
    assert path.read_bytes() == b"old"
    assert [*tmp_path.iterdir()] == [path]


def test_a_folder_that_cannot_be_synced_is_an_error_and_the_content_whole(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    fsync = os.fsync

    def only_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            fail()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"new")
    # After the rename the name may already be the new one's; it is never a mix.
    assert path.read_bytes() in (b"old", b"new")
    assert [*tmp_path.iterdir()] == [path]
