"""Two daemons never work in one directory, whatever the disk lets either of them do."""

from __future__ import annotations

import os

import pytest

from daemon.directory_lock import lock_directory
from daemon.errors import StoreError


@pytest.mark.parametrize("disk", ["tmpfs"], indirect=True)
def test_a_start_on_a_read_only_disk_excludes_one_that_can_write(disk):
    folder = disk.point / "var"
    folder.mkdir()
    disk.remount("ro")
    first = lock_directory(folder, wait=False)
    disk.remount("rw")
    with pytest.raises(StoreError, match="another daemon works in"):
        lock_directory(folder, wait=False)
    os.close(first)
    os.close(lock_directory(folder, wait=False))
    assert os.listdir(folder) == []


def test_the_learner_s_lock_is_beside_the_server_s(tmp_path):
    held = [lock_directory(tmp_path / part, wait=False) for part in ("var", "var/versions")]
    for descriptor in held:
        os.close(descriptor)


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"choose another store\.directory"):
        lock_directory(tmp_path / "file" / "var", wait=False)
