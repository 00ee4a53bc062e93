"""The page takes what is right and certainly faster than all others, and nothing else."""

import pytest

from tests.helpers.recorded_rows import curve, refused
from tests.helpers.sections import section


def said(section):
    return [f"{found.between}. {found.sentence}" for found in section.advice]


def test_one_that_is_nowhere_slower_is_taken_with_how_much_faster_it_certainly_is():
    found = section(
        curve({64: 1.0, 512: 10.0, 1024: 20.0}, impl="cuda"),
        curve({64: 1.0, 512: 11.0, 1024: 30.0}, impl="triton"),
        curve({64: 3.0, 512: 40.0, 1024: 80.0}, impl="vllm"),
    )
    assert found.title == "Take cuda"
    assert said(found) == [
        "Take cuda. At every size from 64 to 1,024 tokens: 1.10 to 1.50 times as fast as triton (at least "
        "1.054); 3.00 to 4.00 times as fast as vllm (at least 2.71)."
    ]


def test_where_nothing_is_certain_in_between_it_is_said():
    found = section(curve({64: 1.0, 512: 10.0}, layout="NHD"), curve({64: 1.0, 512: 11.0}, layout="HND"))
    assert said(found) == [
        "Take NHD. At 512 tokens: 1.10 times as fast as HND (at least 1.054); "
        "at 64 tokens nothing is certainly faster."
    ]


def test_where_another_is_faster_that_is_taken_there():
    found = section(
        curve({1: 2.0, 64: 2.0, 512: 10.0, 1024: 20.0}, impl="cuda"),
        curve({1: 1.0, 64: 2.0, 512: 20.0, 1024: 40.0}, impl="triton"),
    )
    assert found.title == "Take cuda from 64 tokens on, and triton at 1 token"
    assert [one.partition(":")[0] for one in said(found)] == [
        "Take cuda from 64 tokens on. From 512 to 1,024 tokens",
        "Take triton at 1 token. At 1 token",
    ]


def test_those_between_which_nothing_is_certain_are_taken_together():
    ways = {"a": 10.0, "b": 10.1, "c": 20.0}
    found = section(*(curve({512: us}, impl=impl) for impl, us in ways.items()))
    assert found.title == "Take a or b"
    assert said(found) == ["Take a or b. At 512 tokens: 1.98 to 2.00 times as fast as c (at least 1.90)."]
    many = section(*(curve({512: us}, impl=impl) for impl, us in [*ways.items(), ("d", 10.0), ("e", 10.0)]))
    assert many.title == "Take anything but c"


def test_one_that_is_only_perhaps_faster_than_the_rest_is_not_taken_with_the_fastest():
    found = section(*(curve({512: us}, impl=impl) for impl, us in (("a", 10.0), ("b", 10.25), ("c", 10.5))))
    assert found.title == "Take a"


@pytest.mark.parametrize("status", ["incorrect", "failed"])
def test_what_was_wrong_at_any_size_is_not_taken_nor_called_fastest(status):
    wrong = [*curve({512: 1.0}, impl="bad"), refused(status, "why", impl="bad", num_tokens=64, device="auto")]
    found = section(wrong, curve({512: 10.0}, impl="a"), curve({512: 20.0}, impl="b"))
    assert found.title == "Take a"
    texts = " ".join([*said(found), *(one.between + one.sentence for one in found.findings)])
    assert "bad" not in texts
    assert "bad: wrong or failed at a point, so compared with nothing." in found.notes
    assert not any(
        cell.fastest for _, tables in found.panels for table in tables for _, (cell, *_) in table.lines
    )


def test_what_was_wrong_in_another_mode_is_taken_in_its_own():
    wrong = [refused("incorrect", "why", impl="a", mode="no_graph", num_tokens=512)]
    assert (
        section(wrong, *(curve({512: us}, impl=impl) for impl, us in (("a", 1.0), ("b", 2.0)))).title
        == "Take a"
    )


@pytest.mark.parametrize(
    ("curves", "title"),
    [
        ([curve({512: 10.0}, impl=impl) for impl in "ab"], "No choice can be told between a and b"),
        ([curve({8: us}, impl=impl, device="cpu") for impl, us in (("a", 1.0), ("b", 9.0))],
         "No choice can be told between a and b"),
        ([curve({1: 1.0, 8: 2.5})], "cuda NHD bfloat16 takes 1.00 µs for 1 token and 2.50 µs for 8 tokens"),
        ([curve({8: 2.5})], "cuda NHD bfloat16 takes 2.50 µs for 8 tokens"),
        ([curve({8: 1.0}, num_heads=heads) for heads in (8, 9)], "What a call takes by num_heads"),
        ([curve({8: 1.0}, impl=impl) for impl in ("copy", "a")], "What a call takes by impl"),
    ],
)  # fmt: skip
def test_where_nothing_is_certain_nothing_is_taken(curves, title):
    found = section(*curves)
    assert (found.title, found.advice) == (title, ())


def test_each_task_has_its_own_and_equal_ones_share_it():
    us = {("a", 8): 1.0, ("b", 8): 2.0, ("a", 16): 1.0, ("b", 16): 2.0, ("a", 32): 3.0, ("b", 32): 2.0}
    curves = [curve({8: latency}, impl=impl, num_heads=heads) for (impl, heads), latency in us.items()]
    found = section(*curves)
    assert found.title == "With num_heads=8 and num_heads=16 take a; with num_heads=32 take b"
    assert [one.between for one in found.advice] == [
        "With num_heads=8 and num_heads=16 take a",
        "With num_heads=32 take b",
    ]
    assert section(*curves[:4]).title == "Take a"
    tie = [curve({8: 1.0}, impl=impl, num_heads=1) for impl in "ab"]
    assert section(*curves[:4], *tie).title == (
        "With num_heads=8 and num_heads=16 take a; with num_heads=1 no choice can be told"
    )


def test_a_tuned_option_is_compared_with_the_default():
    options = [f'{{"num_warps":{warps},"slot_first":null}}' for warps in ("null", 2, 4)]
    curves = [
        curve({512: us}, impl="triton", impl_options=own)
        for own, us in zip(options, (20.0, 10.0, 15.0), strict=True)
    ]
    assert said(section(*curves)) == [
        "Take num_warps=2. At 512 tokens: 1.50 times as fast as num_warps=4 (at least 1.44); "
        "2.00 times as fast as triton's default (at least 1.92)."
    ]
    assert said(section(*curves[:2])) == [
        "Take num_warps=2. At 512 tokens: 2.00 times as fast as triton's default (at least 1.92)."
    ]


def test_what_one_process_measured_is_not_taken_where_others_were_confirmed():
    lucky = curve({512: 1.0}, impl="lucky")
    again = [
        one | {"repetition": number}
        for impl, us in (("a", 2.0), ("b", 4.0))
        for number in (1, 2, 3)
        for one in curve({512: us}, impl=impl)
    ]
    assert section(lucky, again).title == "Take a"
