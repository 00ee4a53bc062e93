import io

import pytest

from kvexp.report import PrintableConsole, number, print_summary
from tests.helpers import recorded_rows


def row(**columns):
    latency = {"latency_us": 1.2567, "latency_us_p20": 1.2501, "latency_us_p80": 1.2712}
    others = {"layout": "HND", "num_tokens": 2, "gb_per_s": 104.3, "copy_fraction": 0.9812}
    return recorded_rows.row(**latency | others | columns)


def refused(status, reason, **columns):
    return recorded_rows.refused(status, reason, **{"layout": "HND", "num_tokens": 2} | columns)


def printed(rows, width=80, terminal=False):
    console = PrintableConsole(
        file=io.StringIO(), width=width, force_terminal=terminal, color_system=None, _environ={}
    )
    print_summary(rows, console)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.2567, "1.26"),
        (9.996, "10.0"),
        (70.68, "70.7"),
        (99.96, "100"),
        (6245.3, "6,245"),
        (0.1234, "0.123"),
        (0.99996, "1.00"),
    ],
)
def test_numbers_show_three_significant_digits(value, text):
    assert number(value) == text


def test_an_ok_row_shows_latency_spread_bandwidth_and_fraction_of_copy():
    lines = printed([row()]).splitlines()
    assert lines[0].split() == ["curve", "num_tokens", "latency", "(µs)", "p20–p80", "GB/s", "of", "copy"]
    assert lines[1].split() == ["cuda", "HND", "bfloat16", "2", "1.26", "1.25–1.27", "104", "98", "%"]


def test_the_caption_names_the_device_and_whose_clock():
    assert "NVIDIA H200, mode cudagraph, timer cuda_event, reshape_and_cache_flash" in printed([row()])


def test_a_curve_is_named_once_and_only_by_what_varies():
    rows = [row(layout=layout, num_tokens=n) for layout in ("NHD", "HND") for n in (4, 2)]
    text = printed(rows)
    assert [line.split()[0] for line in text.splitlines()[1:3]] == ["NHD", "4"]
    assert text.count("HND") == 1


def test_points_are_listed_by_num_tokens():
    text = printed([row(num_tokens=65536), row(num_tokens=2)])
    assert text.index(" 2 ") < text.index("65,536")


def test_a_verified_row_shows_dashes_and_its_reason():
    text = printed([refused("verified", "interpreted", impl="triton", device="cpu")])
    assert "triton HND bfloat16           2      verified" in text
    assert "verified   triton HND bfloat16: 1 point: interpreted" in text


def test_a_reason_is_printed_once_with_its_curves_and_points():
    reason = "impl=cuda needs an NVIDIA GPU; type impl=torch instead"
    rows = [
        refused("skipped", reason, layout=layout, num_tokens=n)
        for layout in ("NHD", "HND")
        for n in (2, 4, 8, 16)
    ]
    text = printed([row(impl="torch"), *rows])
    assert f"skipped    cuda NHD, cuda HND: 8 points: {reason}\n" in text
    assert text.count(reason) == 1


def test_different_reasons_of_one_curve_are_all_printed():
    text = printed([refused("skipped", f"num_tokens {n} is too much", num_tokens=n) for n in (2, 4)])
    assert "num_tokens 2 is too much" in text
    assert "num_tokens 4 is too much" in text


def test_failures_stand_last():
    text = printed([refused("failed", "boom", layout="NHD"), refused("skipped", "no")])
    assert text.index("skipped") < text.index("failed")


def test_a_compilers_message_is_whole_and_indented():
    log = "flash.cu does not compile:\nflash.cu(12): error: " + "x" * 150 + "\n  1 error"
    text = printed([refused("failed", log)])
    assert "flash.cu does not compile:\n    flash.cu(12): error: " + "x" * 150 + "\n" in text
    assert "\n      1 error\n" in text


def test_disturbances_are_printed_below_the_table_once_with_their_curves():
    rows = [
        row(num_tokens=n, layout=layout, throttled=held, other_processes=others)
        for layout, n, held, others in [
            ("NHD", 2, "sw_power_cap", 0),
            ("NHD", 4, "", 1),
            ("HND", 2, "sw_power_cap", 2),
            ("HND", 4, "hw_thermal, power", None),
        ]
    ]
    *_, calm, shared, heat, cap, refusal = printed([*rows, refused("skipped", "no")]).splitlines()
    assert calm.startswith("NVIDIA H200, mode cudagraph")
    assert shared == "shared     NHD, HND: 2 points: other processes were on the GPU"
    assert heat == "throttled  HND: 1 point: hw_thermal, power"
    assert cap == "throttled  NHD, HND: 2 points: sw_power_cap"
    assert refusal.startswith("skipped")


def test_points_that_nothing_disturbed_have_no_line_about_it():
    text = printed([row(throttled="", other_processes=0), row(throttled=None, other_processes=None)])
    assert "throttled" not in text
    assert "shared" not in text


def test_a_noisy_machine_is_told_with_what_to_do():
    calm, noisy = row(layout="NHD", num_tokens=1), row(layout="HND", num_tokens=2)
    noisy |= {"latency_us": 10.0, "latency_us_p20": 8.0, "latency_us_p80": 14.0}
    said = "noisy      HND: 1 point: p20 to p80 is up to 60 % of the median wide: something else ran; "
    text = printed([calm, noisy])
    assert said in text
    assert "repeat=5" in text.partition(said)[2]
    repeated = printed([each | {"repetition": 3} for each in (calm, noisy)])
    assert f"{said}end it and measure again, or measure with more processes\n" in repeated
    assert "noisy" not in printed([calm])


def test_the_equal_copy_as_a_curve_is_said_to_be_no_cache_write():
    text = printed([row(impl="copy"), row(impl="copy", num_tokens=4), row()])
    assert "equal copy copy: 2 points: a plain copy of as many bytes, no cache write\n" in text


def test_brackets_are_no_markup():
    text = printed([refused("failed", "wrong bytes in key_cache[3, :, 0] [/bold] [red]here")])
    assert "key_cache[3, :, 0] [/bold] [red]here" in text


def test_a_terminal_of_80_columns_shows_every_cell_and_every_word():
    label = {"impl": "triton", "kv_cache_dtype": "fp8_e4m3", "workload": "llama3_70b_tp8"}
    rows = [
        row(num_tokens=65536, latency_us=6245.3, latency_us_p20=6240.0, latency_us_p80=6250.0),
        row(num_tokens=65536, gb_per_s=3987.2, **label),
        refused("skipped", "the cache needs 68,719,476,736 bytes " + "word " * 30, layout="NHD"),
    ]
    text = printed(rows, terminal=True)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "6,240–6,250" in text
    assert "3,987" in text
    assert text.count("word") == 30


def test_a_pipe_gets_no_colour_and_no_cut_cell():
    label = {"impl": "x" * 60}
    text = printed([row(), row(**label)], width=40)
    assert "\x1b" not in text
    assert "…" not in text
    assert "x" * 60 in text


def test_a_sweep_without_rows_prints_nothing():
    assert printed([]) == ""


def test_of_many_curves_with_one_reason_the_first_are_named():
    rows = [refused("skipped", "no", layout=f"L{i}", num_tokens=n) for i in range(20) for n in (1, 2)]
    assert "skipped    L0, L1, L2, L3 and 16 more curves: 40 points: no\n" in printed(rows)
