import pytest

from kvexp.errors import Unsupported
from kvexp.mode import check_mode, prepare


@pytest.mark.parametrize(
    ("mode", "device"), [("no_graph", "cpu"), ("no_graph", "cuda:0"), ("cudagraph", "cuda:1")]
)
def test_a_device_has_its_modes(mode, device):
    assert check_mode(mode, device) is None


def test_a_cpu_has_no_cuda_graphs():
    with pytest.raises(Unsupported) as raised:
        check_mode("cudagraph", "cpu")
    assert str(raised.value) == "mode=cudagraph needs a GPU; on device=cpu use mode=no_graph"


def test_a_replay_without_a_graph_makes_every_call_in_order_each_time():
    made = []
    replay = prepare("no_graph", [lambda number=number: made.append(number) for number in range(4)])
    assert made == []
    replay()
    replay()
    assert made == [0, 1, 2, 3, 0, 1, 2, 3]
