"""Rows become lines, lines panels and heat maps."""

from kvexp.report.curves import find_varied, group_by_machine
from kvexp.report.panels import make_panels
from kvexp.report.speedups import find_axes, make_contrasts
from tests.helpers.recorded_rows import curve, refused, row


def test_only_what_is_timed_makes_a_machine():
    assert group_by_machine([refused("skipped", "no", device_name=None)]) == []


def test_a_machine_is_named_by_what_is_known_of_it():
    (machine,) = group_by_machine([row()])
    assert machine.name == "NVIDIA H200, host h, driver 580.1"
    (machine,) = group_by_machine([row(driver=None, device_name=None, host=None)])
    assert machine.name == "cuda:0"


def test_the_same_curve_of_two_sweeps_is_two_lines():
    (machine,) = group_by_machine([row(1.0, sweep="a"), row(2.0, sweep="b")])
    assert [line.label for line in machine.lines] == ["cuda NHD bfloat16 (a)", "cuda NHD bfloat16 (b)"]


def test_two_sweeps_without_a_common_curve_are_compared():
    (machine,) = group_by_machine([row(1.0, sweep="a"), row(2.0, sweep="b", impl="triton")])
    (axis,) = find_axes(machine.lines)
    assert (axis.column, axis.values) == ("impl", ["cuda", "triton"])


def test_options_that_do_not_differ_are_in_no_name():
    rows = [row(impl_options=f'{{"tile":1,"warps":{warps}}}') for warps in (4, 8)]
    (machine,) = group_by_machine(rows)
    assert [line.label for line in machine.lines] == ["warps=4", "warps=8"]


def test_rows_of_an_older_file_may_lack_columns():
    old = {
        column: value
        for column, value in row().items()
        if column in ("status", "impl", "num_tokens", "latency_us", "device_name")
    }
    (machine,) = group_by_machine([old, {**old, "impl": "triton"}])
    assert [line.label for line in machine.lines] == ["cuda", "triton"]
    assert find_varied(machine.lines) == ["impl"]


def test_colours_are_one_axis_dashes_a_second_and_panels_the_rest():
    rows = [
        row(impl=impl, layout=layout, dtype=dtype)
        for impl in ("a", "b")
        for layout in ("NHD", "HND")
        for dtype in ("half", "bfloat16")
    ]
    (machine,) = group_by_machine(rows)
    half, bfloat16 = make_panels(machine.lines)
    assert (half.title, bfloat16.title) == ("half", "bfloat16")
    assert [(one.name, one.colour, one.dash) for one in half.series] == [
        ("a NHD", 0, 0), ("a HND", 0, 1), ("b NHD", 1, 0), ("b HND", 1, 1),
    ]  # fmt: skip


def test_what_has_too_many_values_for_dashes_has_the_colours():
    layouts = ("NHD", "HND", "NHD_packed", "HND_packed", "BHLNC")
    (machine,) = group_by_machine([row(impl=impl, layout=layout) for impl in "ab" for layout in layouts])
    (panel,) = make_panels(machine.lines)
    assert [(one.name, one.colour, one.dash) for one in panel.series][4:6] == [
        ("a BHLNC", 4, 0),
        ("b NHD", 0, 1),
    ]


def test_a_panel_has_lines_of_one_task_where_several_do_it():
    rows = [row(impl=impl, kv_cache_dtype=cache) for impl in "ab" for cache in ("auto", "fp8_e4m3")]
    (machine,) = group_by_machine(rows)
    panels = make_panels(machine.lines)
    assert [(panel.title, [one.name for one in panel.series]) for panel in panels] == [
        ("bfloat16 cache", ["a", "b"]),
        ("fp8_e4m3 cache", ["a", "b"]),
    ]
    (machine,) = group_by_machine(rows[:2])
    (panel,) = make_panels(machine.lines)
    assert [one.name for one in panel.series] == ["bfloat16 cache", "fp8_e4m3 cache"]


def test_more_lines_than_colours_take_more_panels():
    (machine,) = group_by_machine([row(impl=f"i{number}") for number in range(20)])
    found = make_panels(machine.lines)
    assert [len(panel.series) for panel in found] == [8, 8, 4]
    assert all(len({one.colour for one in panel.series}) == len(panel.series) for panel in found)


def test_a_heat_map_has_a_line_for_each_context_that_has_both():
    rows = [*curve({1: 1.0, 2: 2.0}), *curve({2: 4.0}, impl="triton"), *curve({1: 1.0}, layout="HND")]
    (machine,) = group_by_machine(rows)
    impl, layout = find_axes(machine.lines)
    (contrast,) = make_contrasts(impl)
    assert (contrast.candidate, contrast.baseline, contrast.num_tokens) == ("cuda", "triton", (2,))
    assert contrast.cells["NHD"][2].speedup == 2
    assert list(layout.groups) == ["cuda"]


def test_every_pair_of_values_has_a_heat_map():
    (machine,) = group_by_machine([row(impl=impl) for impl in "abc"])
    (axis,) = find_axes(machine.lines)
    assert [(c.candidate, c.baseline) for c in make_contrasts(axis)] == [("a", "b"), ("a", "c"), ("b", "c")]
