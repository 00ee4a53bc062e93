"""Which curves wait until nothing else runs on the host."""

import pytest

from kvexp.sweep.curve_run import CurveRun
from tests.helpers import compose


def begun(device, *overrides):
    return CurveRun(compose.experiment("workload=tiny", *overrides).resolved(device), worker=None, wanted=())


def test_graphs_on_a_gpus_own_clock_do_not_mind_the_host():
    assert not begun("cuda:0").is_host_sensitive
    assert not begun("cuda:0", "timer=cupti").is_host_sensitive


@pytest.mark.parametrize("override", ["mode=no_graph", "timer=wall_clock"])
def test_what_the_hosts_clock_is_asked_for_does(override):
    assert begun("cuda:0", override).is_host_sensitive


def test_a_cpu_is_the_host():
    assert begun("cpu").is_host_sensitive
