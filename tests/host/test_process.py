import gc
import signal
import subprocess
import sys
import threading
import time
import weakref
from contextlib import closing

import pytest

from kvexp.host import process
from kvexp.host.process import LineChild, frozen_imports, wait_for_end


class Ring:
    """Refers to itself, so that the collector alone can end it."""

    def __init__(self):
        self.itself = self


def gone(ring):
    gc.collect()
    return ring() is None


@pytest.fixture(autouse=True)
def thaw():
    yield
    gc.unfreeze()
    gc.enable()


def test_what_is_made_inside_is_never_looked_at_and_what_comes_after_is():
    with frozen_imports():
        assert not gc.isenabled()
        inside = weakref.ref(Ring())
    assert gc.isenabled()
    after = weakref.ref(Ring())
    assert not gone(inside)
    assert gone(after)


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    with frozen_imports():
        pass
    assert not gc.isenabled()


def test_what_fails_inside_leaves_the_collector_as_it_was():
    with pytest.raises(ImportError), frozen_imports():
        raise ImportError("no such module")
    assert gc.isenabled()


@pytest.mark.parametrize("wait", ["receive", "send", "end"])
def test_a_wait_sees_a_signal_that_does_not_interrupt_its_call_of_the_system(wait, monkeypatch):
    """As one that comes just before the call: one that another thread takes does not interrupt it either."""

    def start_sleeping(module, stdin, stdout, stderr, own_session):
        command = [sys.executable, "-c", "import time; time.sleep(60)"]
        return subprocess.Popen(command, bufsize=0, stdin=stdin, stdout=stdout, stderr=stderr)

    monkeypatch.setattr(process, "start_module", start_sleeping)
    with closing(LineChild("kvexp.bench.child")) as child:
        waits = {
            "receive": lambda: child.receive(50),
            "send": lambda: child.send("x" * (1 << 22)),  # more than a pipe holds
            "end": lambda: wait_for_end(child.process),
        }
        interrupter = threading.Timer(0.3, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT))
        interrupter.start()
        begin = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            waits[wait]()
        assert time.monotonic() - begin < 20
        interrupter.join()
