import pytest

from kvexp.results.labels import group_by_curve, label_curves


def test_rows_are_grouped_into_curves_over_num_tokens():
    rows = [{"layout": layout, "num_tokens": n} for n in (2, 4) for layout in ("NHD", "HND")]
    assert [[(r["layout"], r["num_tokens"]) for r in curve] for curve in group_by_curve(rows)] == [
        [("NHD", 2), ("NHD", 4)],
        [("HND", 2), ("HND", 4)],
    ]


def test_a_label_holds_only_what_distinguishes_the_curves():
    rows = [
        {"impl": impl, "layout": layout, "dtype": "half", "workload": "tiny", "num_heads": 8}
        for impl in ("cuda", "torch")
        for layout in ("NHD", "HND")
    ]
    assert label_curves(group_by_curve(rows)) == ["cuda NHD", "cuda HND", "torch NHD", "torch HND"]


def test_a_workloads_name_stands_for_its_sizes():
    rows = [{"workload": "tiny", "num_heads": 2}, {"workload": "seed", "num_heads": 128}]
    assert label_curves(group_by_curve(rows)) == ["tiny", "seed"]


def test_numbers_and_options_carry_their_names_in_a_label():
    rows = [
        {"workload": "tiny", "num_heads": heads, "impl_options": options}
        for heads in (8, 32)
        for options in ('{"threads":128}', '{"threads":256}')
    ]
    assert label_curves(group_by_curve(rows))[1] == "num_heads=8 threads=256"


def test_curves_of_two_devices_are_labelled_by_the_device_not_by_its_mode():
    rows = [{"device": "cpu", "mode": "no_graph"}, {"device": "cuda:0", "mode": "cudagraph"}]
    assert label_curves(group_by_curve(rows)) == ["cpu", "cuda:0"]


@pytest.mark.parametrize(
    ("kv_cache_dtype", "label"), [("auto", "cuda HND half"), ("fp8_e4m3", "cuda HND half fp8_e4m3")]
)
def test_a_single_curve_is_called_by_its_main_choices(kv_cache_dtype, label):
    made = {"impl": "cuda", "layout": "HND", "dtype": "half", "kv_cache_dtype": kv_cache_dtype}
    assert label_curves([[made]]) == [label]
