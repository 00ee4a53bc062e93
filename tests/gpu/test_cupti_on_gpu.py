"""timer=cupti on a GPU: where the package is not installed, the points say so."""

import importlib.util

import pytest

from kvexp.bench import environment, run_curve
from tests.helpers import compose

pytestmark = pytest.mark.alone

INSTALLED = importlib.util.find_spec("cupti") is not None


def measured(*overrides):
    sizes = ("workload=llama3_8b", "workload.num_tokens=[1,4096]", "timer.max_seconds=0.3")
    made = compose.experiment("impl=cuda", *sizes, *overrides)
    return list(run_curve.run(made.resolve("cuda:0"), environment.read("cuda:0")))


@pytest.mark.skipif(INSTALLED, reason="cupti-python is installed")
def test_without_the_package_every_point_is_skipped():
    for point in measured("timer=cupti"):
        assert point.status == "skipped"
        assert "needs the package cupti-python" in point.reason


@pytest.mark.skipif(not INSTALLED, reason="cupti-python is not installed")
@pytest.mark.parametrize("mode", ["cudagraph", "no_graph"])
def test_a_long_kernel_reads_alike_by_both_clocks(mode):
    """What lies between two kernels is in the one and not in the other: it is below 2 us."""
    by_events = measured("timer=cuda_event", f"mode={mode}")
    by_records = measured("timer=cupti", f"mode={mode}")
    for one, other in zip(by_events, by_records, strict=True):
        assert (other.status, other.cache_state, other.host_us) == ("ok", one.cache_state, None), other.reason
        difference_us = one.statistics.latency_us - other.statistics.latency_us
        assert abs(difference_us) < 2.0 + 0.03 * one.statistics.latency_us
        assert 0 < other.empty_kernel_us < 3.0
