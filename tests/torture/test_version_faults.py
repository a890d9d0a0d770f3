"""R5 and R6: a version is there whole or not at all, whatever ends the daemon or eats its files."""

from __future__ import annotations

import threading

import pytest

from daemon.durable import replace_file
from engines import open_predict_engine, weights_digest, weights_from_bytes, weights_to_bytes
from tests.daemon_fixtures import network
from tests.torture.mutations import mutate
from tests.torture.version_life import kill_at_each_step


@pytest.mark.timeout(1800)
def test_a_kill_at_each_step_of_a_swap_leaves_the_old_or_the_new(
    zygote, fault_shim, memory_path, size, progress, record
):
    rounds = size("--swap-kills")
    lives = kill_at_each_step(zygote, fault_shim, memory_path, rounds, progress=progress)
    record(lives)
    assert lives.broken == []
    assert lives.steps >= 40
    assert lives.killed == rounds * lives.steps
    assert lives.old > 0
    assert lives.new > 0


@pytest.mark.timeout(1800)
def test_a_damaged_weight_file_is_never_served(memory_path, size, seed, record):
    mutations = size("--weight-mutations")
    found = mutate(memory_path, open_predict_engine("torch"), mutations, seed)
    record(found)
    assert found.broken == []
    assert found.answered == found.mutations == mutations
    assert found.refused + found.harmless == mutations
    assert found.harmless <= 0.01 * mutations


@pytest.mark.parametrize("writers", [2, 50])
def test_saved_at_once_by_many_a_file_is_one_of_theirs(tmp_path, writers):
    """VowpalWabbit #627: two quick saves left no model file."""
    path = tmp_path / "saved.safetensors"
    saved = [weights_to_bytes(network(1 + n % 3)) for n in range(writers)]
    digests = {weights_digest(network(number)) for number in (1, 2, 3)}
    failed: list[BaseException] = []
    ready = threading.Barrier(writers)

    def save(content: bytes) -> None:
        ready.wait(20)
        try:
            for _ in range(3):
                replace_file(path, content)
                assert weights_digest(weights_from_bytes(path.read_bytes())) in digests
        except BaseException as error:  # noqa: BLE001 - whatever it is
            failed.append(error)

    threads = [threading.Thread(target=save, args=(content,)) for content in saved]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
