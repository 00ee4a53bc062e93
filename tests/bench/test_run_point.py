"""What the samples of a point may say."""

import pytest

from kvexp.bench.run_point import _summarise
from kvexp.errors import KvexpError
from kvexp.timer import Timing


def statistics(latency_us, empty_kernel_us):
    return _summarise(Timing((latency_us,) * 20), empty_kernel_us)


@pytest.mark.parametrize("empty_kernel_us", [0.9, 1.3, None])
def test_a_call_may_take_as_long_as_an_empty_kernel_or_a_little_less(empty_kernel_us):
    assert statistics(0.85, empty_kernel_us).latency_us == 0.85


@pytest.mark.parametrize("latency_us", [0.0, -0.2])
def test_nothing_is_no_latency(latency_us):
    with pytest.raises(KvexpError, match="below what the timer resolves"):
        statistics(latency_us, 0.9)


def test_a_latency_that_a_fifth_of_the_samples_deny_is_none():
    with pytest.raises(KvexpError, match="below what the timer resolves"):
        _summarise(Timing((-0.1,) * 5 + (0.9,) * 15), None)


def test_what_takes_a_small_part_of_an_empty_kernel_does_not_run_where_it_is_timed():
    with pytest.raises(
        KvexpError, match=r"takes 0\.03 us and an empty kernel 0\.9, so it does not run on torch's"
    ):
        statistics(0.03, 0.9)
