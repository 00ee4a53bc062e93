"""Turns at a GPU while an implementation is asked; no GPU is needed for that."""

import os
import subprocess
import sys
from contextlib import ExitStack

import pytest

from kvexp.bench.contract import FULL
from kvexp.bench.contract.ask import Asker
from kvexp.gpu import lock
from tests.helpers import tiny_curve

UUID = "GPU-1"
ON_A_GPU = f"""
from kvexp.bench import environment
from kvexp.bench.contract import process

environment.read = lambda device: {{"device_uuid": "{UUID}"}}
process.serve()
"""
"""The process that is asked, as if its device were a GPU of that UUID."""


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch, tmp_path):
    popen = subprocess.Popen
    monkeypatch.setenv("KVEXP_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.setattr(
        subprocess, "Popen", lambda _, **options: popen([sys.executable, "-c", ON_A_GPU], **options)
    )


def asked(asker):
    try:
        return asker.ask(tiny_curve.curve(how="contract_breakers.Breaking", num_tokens=16)).column(16)
    finally:
        asker.close()


def test_who_verifies_alone_waits_for_the_turn_and_gives_it_back():
    heard, turn = [], ExitStack()
    turn.enter_context(lock.gpu_lock(UUID))

    def waits(holder):
        heard.append(holder)
        turn.close()

    asker = Asker(waits)
    asker.limit(60)
    assert asked(asker) == FULL
    assert heard == [f"process {os.getpid()}", None]
    assert list(lock.list_holders()) == []


def test_who_has_the_turn_has_the_clauses_posed_within_it():
    with lock.gpu_lock(UUID):
        asker = Asker()
        asker.limit(60)
        assert asked(asker) == FULL
        assert [uuid for uuid, _ in lock.list_holders()] == [UUID]
