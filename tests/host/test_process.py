import gc
import weakref

import pytest

from kvexp.host.process import frozen_imports


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
