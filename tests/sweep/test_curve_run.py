"""Which curves the load of the host can affect."""

import pytest

from kvexp.sweep.curve_run import CurveRun
from tests.helpers import compose


def make_run(device, *overrides):
    return CurveRun(compose.experiment("workload=tiny", *overrides).resolve(device), worker=None, wanted=())


def test_graphs_on_a_gpus_own_clock_are_not_host_sensitive():
    assert not make_run("cuda:0").is_host_sensitive
    assert not make_run("cuda:0", "timer=cupti").is_host_sensitive


@pytest.mark.parametrize("override", ["mode=no_graph", "timer=wall_clock"])
def test_what_the_hosts_clock_times_is_host_sensitive(override):
    assert make_run("cuda:0", override).is_host_sensitive


def test_a_cpu_is_host_sensitive():
    assert make_run("cpu").is_host_sensitive
