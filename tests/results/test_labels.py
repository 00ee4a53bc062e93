import pytest

from kvexp.results.labels import group_by_curve, label_curves, name_curves


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


@pytest.mark.parametrize(
    ("curves", "names"),
    [
        # A workload's name stands for its sizes, unless they differ otherwise.
        ([{"workload": "tiny", "num_heads": 2}, {"workload": "seed", "num_heads": 8}], ["tiny", "seed"]),
        (
            [{"workload": "tiny", "num_heads": heads} for heads in (2, 4)]
            + [{"workload": "seed", "num_heads": 4}],
            ["tiny num_heads=2", "tiny num_heads=4", "seed num_heads=4"],
        ),
        # A column that tells nothing new apart is told all the same.
        (
            [
                {"dtype": "bfloat16", "kv_cache_dtype": "auto", "num_heads": 128, "num_query_heads": 128},
                {"dtype": "bfloat16", "kv_cache_dtype": "fp8_e4m3", "num_heads": 64, "num_query_heads": 64},
            ],
            ["bfloat16 cache num_heads=128", "fp8_e4m3 cache num_heads=64"],
        ),
        (
            [{"dtype": dtype, "kv_cache_dtype": "auto"} for dtype in ("half", "float")],
            ["half", "float"],
        ),
        (
            [
                {"dtype": dtype, "kv_cache_dtype": cache}
                for dtype in ("half", "float")
                for cache in ("auto", "fp8_e4m3")
            ],
            [
                "half unquantised cache",
                "half fp8_e4m3 cache",
                "float unquantised cache",
                "float fp8_e4m3 cache",
            ],
        ),
        # Options that all curves of an implementation share are not told; values are as one types them.
        (
            [
                {"impl": "a", "impl_options": '{"slot_first":null,"sort":true,"warps":2}'},
                {"impl": "a", "impl_options": '{"slot_first":null,"sort":null,"warps":4}'},
                {"impl": "b", "impl_options": '{"warps":8}'},
            ],
            ["a sort=true warps=2", "a sort=null warps=4", "b"],
        ),
        (
            [{"op": "a", "op_options": f'{{"scale_fmt":"{word}"}}'} for word in ("ue8m0", "float32")],
            ["scale_fmt=ue8m0", "scale_fmt=float32"],
        ),
        # Two devices differ in what `auto` means there, too.
        (
            [{"device": "cpu", "mode": "no_graph"}, {"device": "cuda:0", "mode": "cudagraph"}],
            ["cpu", "cuda:0"],
        ),
        (
            [{"device": device, "mode": "no_graph"} for device in ("cpu", "cuda:0")]
            + [{"device": "cuda:0", "mode": "cudagraph"}],
            ["cpu no_graph", "cuda:0 no_graph", "cuda:0 cudagraph"],
        ),
    ],
)
def test_a_name_tells_everything_that_differs(curves, names):
    assert name_curves(curves) == names


@pytest.mark.parametrize(
    ("kv_cache_dtype", "label"), [("auto", "cuda HND half"), ("fp8_e4m3", "cuda HND half fp8_e4m3 cache")]
)
def test_a_single_curve_is_called_by_its_main_choices(kv_cache_dtype, label):
    made = {"impl": "cuda", "layout": "HND", "dtype": "half", "kv_cache_dtype": kv_cache_dtype}
    assert label_curves([[made]]) == [label]


def test_what_a_sweeper_may_choose_names_a_curve_before_others_are_known():
    curve = {"impl": "a", "layout": "NHD", "num_heads": 8, "impl_options": '{"stages":3,"warps":2}'}
    keys = {"impl.warps": "choice(2,4)", "workload.num_heads": "interval(1,8)", "tracking.tags.x": "1,2"}
    assert name_curves([curve], keys) == ["num_heads=8 warps=2"]


def test_a_name_is_one_line_that_can_be_written():
    curve = {"impl": "a", "impl_options": '{"text":"x\\n\\u2028y\\udc80"}'}
    assert name_curves([curve], ["impl.text"]) == ["text='x y?'"]


@pytest.mark.parametrize(
    ("told", "labels"),
    [
        (("NHD half", "HND half"), ["NHD half", "HND half"]),  # the sweep's: others of it differ in dtype
        (("NHD half", None), ["NHD", "HND"]),
        (("a", "b"), ["NHD", "HND"]),  # of two sweeps, whose names hide what differs between them
        (("NHD", "NHD"), ["NHD", "HND"]),
    ],
)
def test_the_name_that_a_sweep_gave_counts_where_it_tells_the_curves_apart(told, labels):
    rows = [{"layout": layout, "curve": name} for layout, name in zip(("NHD", "HND"), told, strict=True)]
    assert label_curves(group_by_curve(rows)) == labels


def test_one_curve_of_a_sweep_keeps_its_name():
    assert label_curves([[{"impl": "cuda", "layout": "HND", "curve": "HND warps=4"}]]) == ["HND warps=4"]
