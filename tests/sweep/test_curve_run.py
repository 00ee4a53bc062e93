"""Which curves wait until nothing else runs on the host."""

import pytest

from kvexp.sweep.curve_run import Begun
from tests.helpers import compose


def begun(device, *overrides):
    return Begun(compose.experiment("workload=tiny", *overrides).resolve(device), worker=None, wanted=())


def test_graphs_on_a_gpus_own_clock_do_not_mind_the_host():
    assert not begun("cuda:0").minds_the_host
    assert not begun("cuda:0", "timer=cupti").minds_the_host


@pytest.mark.parametrize("override", ["mode=no_graph", "timer=wall_clock"])
def test_what_the_hosts_clock_is_asked_for_does(override):
    assert begun("cuda:0", override).minds_the_host


def test_a_cpu_is_the_host():
    assert begun("cpu").minds_the_host
