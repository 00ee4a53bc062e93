import signal

import pytest

from kvexp.sweep.signals import DeferredInterrupt


@pytest.fixture
def passed():
    """Collects what a block has come past."""
    return []


def press():
    signal.raise_signal(signal.SIGINT)


def test_a_second_ctrl_c_is_raised_at_once(passed):
    def block():
        with DeferredInterrupt():
            press()
            passed.append(1)
            press()
            passed.append(2)

    with pytest.raises(KeyboardInterrupt):
        block()
    assert passed == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_comes_at_the_end_of_a_block_that_does_not_ask(passed):
    def block():
        with DeferredInterrupt():
            press()
            passed.append(1)

    with pytest.raises(KeyboardInterrupt):
        block()
    assert passed == [1]


def test_what_a_block_raises_is_not_replaced():
    def block():
        with DeferredInterrupt():
            press()
            raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        block()


def test_ctrl_c_is_raised_at_once_where_it_is_lifted_and_waits_again_after_it(passed):
    def lifted(interrupt):
        with interrupt.lift():
            press()
            passed.append(1)

    def block():
        with DeferredInterrupt() as interrupt:
            with pytest.raises(KeyboardInterrupt):
                lifted(interrupt)
            press()
            passed.append(2)
            interrupt.check()
            passed.append(3)

    with pytest.raises(KeyboardInterrupt):
        block()
    assert passed == [2]


def test_an_ignored_ctrl_c_stays_ignored(request):
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with DeferredInterrupt() as interrupt, interrupt.lift():
        press()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
