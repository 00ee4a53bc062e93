"""The main figure is the time over the best, one range for all panels, with what limits a call."""

import pytest

from kvexp.report.content import build_content
from kvexp.report.curves import group_by_machine
from kvexp.report.data_sheet import compare_with_data_sheet
from kvexp.report.embed import draw_figures
from kvexp.report.regimes import find_regimes
from tests.helpers.recorded_rows import curve, row


def test_a_regime_is_what_limits_the_fastest_at_its_sizes():
    def points(slowness):
        limits = {1: (0.9, 10), 8: (1.0, 100), 64: (1.1, 1000), 512: (9.0, 1001), 1024: (20.0, 9999)}
        return [
            row(slowness * us, num_tokens=size, bytes_moved=moved, l2_bytes=1000, empty_kernel_us=0.5)
            for size, (us, moved) in limits.items()
        ]

    assert find_regimes([*points(1), *points(2)]) == [
        ("launch floor", 1, 8), ("fits the L2", 64, 64), ("memory", 512, 1024)
    ]  # fmt: skip
    assert find_regimes([row(empty_kernel_us=None)]) == []


@pytest.fixture(scope="module")
def figures():
    """The main figures of two tasks, which three lines do, and one more line that is alone with its task."""
    curves = [
        curve({1: us, 512: 8 * us}, impl=impl, num_heads=heads, num_query_heads=heads)
        for heads, latencies in ((8, (1.0, 3.0, 9.0)), (16, (2.0, 2.2, 2.1)))
        for impl, us in zip(("cuda", "triton", "vllm"), latencies, strict=True)
    ]
    copies = {1: 0.9, 512: 4.0}
    rows = [
        one | {"sweep": "s", "command": "", "copy_us": copies[one["num_tokens"]]}
        for own in curves
        for one in own
    ]
    (panels,) = draw_figures(build_content(rows))
    return [pictures[0].figure.axes[0] for pictures in panels]


def values(axes, label):
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return line.get_ydata().tolist()


def test_each_task_s_best_is_1_and_peers_and_the_copy_are_drawn_beside_it(figures):
    eight, sixteen = figures
    assert values(eight, "cuda") == values(sixteen, "cuda") == [1.0, 1.0]
    assert values(eight, "vllm") == [9.0, 9.0]
    assert values(sixteen, "vllm") == pytest.approx([1.05, 1.05])
    assert values(eight, "an equal copy") == [0.9, 0.5]
    assert "an equal copy" not in [line.get_label() for line in sixteen.lines]  # it would take all the room


def test_its_bands_are_intervals_and_all_panels_have_one_range(figures):
    eight, sixteen = figures
    assert eight.get_ylim() == sixteen.get_ylim()
    assert eight.get_yscale() == sixteen.get_yscale() == "log"
    (band,) = sixteen.collections[1].get_paths()
    assert (min(band.vertices[:, 1]), max(band.vertices[:, 1])) == pytest.approx((0.998 * 1.1, 1.002 * 1.1))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({}, "Of the 4,800 GB/s of the data sheet cuda NHD bfloat16 reaches 50 % at 64 tokens, "),
        ({"inputs_state": "hot"}, ""),
        ({"cache_state": "warm"}, ""),
        ({"bytes_moved": 1000}, ""),
        ({"device_name": "NVIDIA unknown"}, ""),
    ],
)
def test_the_data_sheet_counts_where_all_bytes_must_cross_the_memory_s_bus(other, said):
    cold = {"inputs_state": "cold", "cache_state": "cold", "bytes_moved": 9999, "l2_bytes": 1000}
    (machine,) = group_by_machine([row(**cold | {"gb_per_s": 2400.0} | other)])
    found = compare_with_data_sheet(machine)
    assert found.startswith(said)
    assert bool(found) == bool(said)
