"""The findings name who is fastest only where the intervals are far enough apart."""

from kvexp.report import findings
from kvexp.report.curves import group_by_machine
from kvexp.report.speedups import find_axes
from kvexp.results import compare
from kvexp.results.merge import merge_repetitions
from tests.helpers.recorded_rows import curve, row
from tests.helpers.sections import section


def said(*curves):
    rows = [row for rows in curves for row in rows]
    told = []
    for machine in group_by_machine(rows):
        axes = find_axes(machine.ranked)
        told += [f"{finding.between}: {finding.sentence}" for finding in findings.list_findings(axes)]
        told.append(findings.describe_untold(axes))
    return list(filter(None, told))


def bold(section):
    """The names of the curves that are bold in some table."""
    return {
        name
        for _, tables in section.panels
        for table in tables
        for _, cells in table.lines
        for name, cell in zip(table.names, cells, strict=True)
        if cell and cell.fastest
    }


def test_each_is_fastest_at_its_sizes_and_none_elsewhere():
    cuda = curve({2: 1.00, 4: 1.0, 256: 8.0, 512: 10.0, 1024: 20.0}, impl="cuda")
    triton = curve({2: 1.04, 4: 1.0, 256: 7.0, 512: 10.5, 1024: 21.0}, impl="triton")
    assert said(cuda, triton) == [
        "cuda or triton: cuda is fastest from 512 to 1,024 tokens, 1.05 times as fast as triton; "
        "triton is fastest at 256 tokens, 1.14 times as fast as cuda.",
        "No difference can be told: cuda or triton from 2 to 4 tokens.",
    ]


def test_equal_ones_are_equal_at_every_size():
    curves = [curve({1: 2.0, 8: 3.0}, impl=impl) for impl in ("cuda", "triton")]
    assert said(*curves) == ["No difference can be told: cuda or triton at every size from 1 to 8 tokens."]


def test_those_that_share_the_lead_are_named():
    curves = [curve({512: us}, impl=impl) for impl, us in (("a", 10.0), ("b", 10.1), ("c", 20.0))]
    assert said(*curves) == ["a, b or c: a and b share the lead at 512 tokens."]


def test_the_fastest_of_three_is_compared_with_the_next():
    curves = [curve({1: us}, impl=impl) for impl, us in (("a", 10.0), ("b", 20.0), ("c", 40.0))]
    assert said(*curves) == ["a, b or c: a is fastest at 1 token, 2.00 times as fast as the next."]


def test_contexts_that_say_the_same_share_a_sentence():
    curves = [
        curve({8: us}, impl=impl, layout=layout)
        for impl, us in (("cuda", 1.0), ("triton", 2.0))
        for layout in ("NHD", "HND")
    ]
    assert said(*curves) == [
        "cuda or triton, with NHD and with HND: cuda is fastest at 8 tokens, 2.00 times as fast as triton.",
        "No difference can be told: NHD or HND, with cuda and with triton at 8 tokens.",
    ]


def test_of_many_contexts_the_count_comes_first():
    curves = [
        curve({8: us, 9: us}, impl=impl, num_heads=heads, block_size=heads)
        for impl, us in (("cuda", 1.0), ("triton", 2.0))
        for heads in (1, 2, 4, 8)
    ]
    assert said(*curves)[0] == "cuda or triton, over all: Of 8 points, cuda is fastest at 8."


def test_the_count_includes_points_without_a_fastest_one():
    def curves(first):
        return [
            curve({8: us, 9: 3.0}, impl=impl, num_heads=heads)
            for impl, us in (("cuda", first), ("triton", 3.0))
            for heads in (1, 2, 4, 8)
        ]

    assert said(*curves(1.0))[0].endswith("cuda is fastest at 4; at 4 no fastest one can be told.")
    assert [one.partition(" or ")[0] for one in said(*curves(3.0))] == ["No difference can be told: cuda"]


def test_many_values_are_counted_instead_of_named():
    curves = [curve({8: us}, impl_options=f'{{"tile":{us}}}') for us in range(1, 10)]
    assert said(*curves)[0].startswith("9 values of impl_options: tile=1 is fastest at 8 tokens")
    assert said(*curves[:8])[0].startswith("tile=1, tile=2, tile=3, ")


def test_disturbances_of_the_gpu_are_named():
    rows = [row(num_tokens=1, throttled="sw_power_cap"), row(num_tokens=2, throttled="", other_processes=1)]
    rows[1] |= {"latency_us": 10.0, "latency_us_p20": 8.0, "latency_us_p80": 14.0}
    (machine,) = group_by_machine(rows)
    assert findings.describe_disturbances(machine) == [
        "At 1 of 2 points the GPU's clocks were held down: sw_power_cap.",
        "At 1 of 2 points other processes were on the GPU.",
        "At 1 of 2 points p20 to p80 is up to 60 % of the median wide: something else ran.",
    ]
    assert findings.describe_disturbances(group_by_machine([row()])[0]) == []


def test_those_that_differ_in_more_than_one_choice_are_not_compared():
    assert said(curve({8: 1.0}), curve({8: 2.0}, impl="torch", mode="no_graph")) == []


def test_other_sizes_are_another_task():
    assert said(curve({8: 1.0}), curve({8: 2.0}, num_heads=16)) == []


def test_another_kind_of_gpu_host_or_driver_is_never_compared():
    for other in ({"device_name": "NVIDIA H100"}, {"host": "i"}, {"driver": "590"}):
        assert said(curve({8: 1.0}), curve({8: 2.0}, impl="triton", **other)) == []


def test_between_equal_gpus_a_difference_must_exceed_what_they_differ_by():
    slower = curve({1024: 1.05}, impl="triton")
    assert "cuda is fastest" in said(curve({1024: 1.0}), slower)[0]
    elsewhere = curve({1024: 1.05}, impl="triton", device_uuid="GPU-2")
    assert "No difference can be told" in said(curve({1024: 1.0}), elsewhere)[0]


def test_what_several_processes_measured_among_other_curves_is_compared_first():
    """As a sweep that optimised measures its best curve and the default again, which differ in two keys."""
    trials = [curve({1024: us}, impl_options=f'{{"tile":{us}}}') for us in (3.0, 1.5, 1.0)]
    sides = curve({1024: 2.0}), curve({1024: 1.0}, impl_options='{"tile":1}', layout="HND")
    again = [
        [row | {"repetition": number} for row in side]
        for side in sides
        for number in range(1, findings.CONFIRMED + 1)
    ]
    first = section(*trials, *again).findings[0]
    assert first.between.endswith(f", in {findings.CONFIRMED} processes each")
    assert "is fastest at 1,024 tokens, 2.00 times as fast as" in first.sentence
    assert "HND" in first.sentence.partition(" is fastest")[0]
    for others in (trials, again):
        assert not any("processes each" in finding.between for finding in section(*others).findings)


def test_options_tell_implementations_apart():
    one, two = ('{"num_warps":4,"tile":1}', '{"num_warps":8,"tile":1}')
    rows = [curve({8: 1.0}, impl_options=one), curve({8: 2.0}, impl_options=two)]
    assert said(*rows) == [
        "num_warps=4 or num_warps=8: num_warps=4 is fastest at 8 tokens, 2.00 times as fast as num_warps=8."
    ]


def test_the_equal_copy_names_what_comes_nearest():
    (machine,) = group_by_machine(
        [row(10.0, num_tokens=1), row(6.0, num_tokens=2), row(10.0, num_tokens=4, layout="HND")]
    )
    assert findings.compare_with_copy(machine) == (
        "The best point reaches 83 % of an equal copy's speed: NHD at 2 tokens. "
        "At 4 tokens the best reaches 50 %."
    )


def test_without_a_copy_nothing_is_compared_with_it():
    (machine,) = group_by_machine([row(copy_fraction=None)])
    assert findings.compare_with_copy(machine) == ""


def test_the_rule_names_its_percentages():
    (machine,) = group_by_machine([row()])
    assert "2 % (5 % below 512 tokens)" in findings.describe_rule(machine)
    assert "Each point is from one process. " in findings.describe_rule(machine)
    rounds = [row(device="cpu", sweep="s", repetition=number) for number in (1, 2)]
    (machine,) = group_by_machine(merge_repetitions(rounds))
    said = findings.describe_rule(machine)
    assert "20 %" in said
    assert "from the median one of up to 2 processes" in said


def test_the_equal_copy_is_shown_and_never_ranked():
    copy = curve({8: 1.0}, impl="copy", copy_fraction=1.0)
    cuda, triton = curve({8: 10.0}, impl="cuda"), curve({8: 20.0}, impl="triton")
    said = section(copy, cuda, triton)
    (finding,) = said.findings
    assert (finding.between, finding.sentence) == (
        "cuda or triton",
        "cuda is fastest at 8 tokens, 2.00 times as fast as triton.",
    )
    assert [(one.candidate, one.baseline) for one in said.contrasts] == [("cuda", "triton")]
    assert bold(said) == {"cuda"}
    assert "reaches 50 % of an equal copy's speed: cuda at 8 tokens." in said.notes[1]
    assert [one.name for panel, _ in said.panels for one in panel.series] == ["copy", "cuda", "triton"]


def test_beside_the_equal_copy_alone_nothing_is_the_fastest():
    said = section(curve({8: 1.0}, impl="copy"), curve({8: 10.0}, impl="cuda"))
    assert (said.findings, said.contrasts, bold(said)) == ((), (), set())


def test_on_a_cpu_one_process_has_no_findings():
    curves = [curve({8: us, 64: us}, layout=name, device="cpu") for name, us in (("NHD", 1.0), ("HND", 5.11))]
    said = section(*curves)
    assert said.findings == ()
    assert said.notes[0] == (
        "On a CPU, what one process measured is not enough to call anything fastest; "
        "repeat=5 measures in five processes."
    )
    assert bold(said) == set()
    (contrast,) = said.contrasts
    assert [verdict.word for verdict in contrast.cells[""].values()] == ["ambiguous"] * 2


def test_on_a_cpu_several_processes_have_findings():
    curves = [curve({8: us}, layout=name, device="cpu") for name, us in (("NHD", 1.0), ("HND", 2.0))]
    said = section(*curves, processes=3)
    (finding,) = said.findings
    assert finding.sentence == "NHD is fastest at 8 tokens, 2.00 times as fast as HND."
    assert "20 %" in said.notes[0]
    assert bold(said) == {"NHD"}
    assert said.contrasts[0].cells[""][8].word == "faster"


def test_on_a_cpu_nothing_differs_from_a_curve_of_one_process():
    several = [curve({8: 1.0}, device="cpu", repetition=number) for number in (1, 2, 3)]
    said = section(*several, curve({8: 2.0}, layout="HND", device="cpu"))
    assert said.findings == ()
    assert said.notes[-1].startswith("No difference can be told: ")
    assert said.notes[-1].endswith(" at 8 tokens.")


def test_on_a_cpu_a_sweep_with_nothing_to_compare_has_no_note_on_it():
    assert not any("On a CPU" in note for note in section(curve({8: 1.0}, device="cpu")).notes)


def test_several_processes_are_judged_as_a_comparison_judges_them():
    scattered = {"NHD": (7.7, 7.9, 8.4, 13.9, 14.4), "HND": (11.5, 11.9, 15.9, 17.0, 18.5)}
    rows = [
        row(us, num_tokens=512, layout=layout, repetition=number)
        for layout, latencies in scattered.items()
        for number, us in enumerate(latencies, 1)
    ]
    sides = [compare.select_value(rows, "layout", layout) for layout in ("HND", "NHD")]
    (point,) = compare.compare(*sides, ignored=["layout"], in_one_sweep=True)
    said = section(rows)
    (contrast,) = said.contrasts
    assert contrast.cells[""][512] == point.verdict
    assert point.word == "ambiguous"
    assert said.findings == ()
    assert said.notes[-1].startswith("No difference can be told: ")
    assert said.notes[-1].endswith(" at 512 tokens.")
    assert bold(said) == set()
    assert "from the median one of up to 5 processes" in said.notes[0]
    assert "the scatter of these processes" in said.notes[0]


def test_how_many_times_as_fast_is_what_a_comparison_says():
    found = {"NHD": (10.0, 10.0, 10.0, 14.0, 14.0), "HND": (20.0,) * 5}
    rows = [
        row(us, num_tokens=512, layout=layout, repetition=number)
        for layout, latencies in found.items()
        for number, us in enumerate(latencies, 1)
    ]
    (finding,) = section(rows).findings
    sides = (compare.select_value(rows, "layout", name) for name in found)
    (point,) = compare.compare(*sides, ignored=["layout"], in_one_sweep=True)
    assert f"NHD is fastest at 512 tokens, {point.verdict.ratio:.2f} times as fast" in finding.sentence
