"""A page on several ops says what each layout costs and which to choose, as surely as its rows."""

import pytest

from kvexp.report.content import build_content
from tests.helpers.recorded_rows import row

WRITE, READ, TRANSFER = "reshape_and_cache_flash", "paged_decode", "transfer"
ALIKE = {WRITE: 10.0, READ: 100.0}
SIZES = {WRITE: 32, READ: 32, TRANSFER: 8192}


def measured(us, processes=1, **columns):
    """Rows of each op in each layout, with the same latency in each process."""
    return [
        row(
            latency * (1 + 0.0002 * (number - 1)),
            op=op, layout=layout, num_tokens=SIZES.get(op, 32), repetition=number, num_layers=8, **columns,
        )
        for layout, ops in us.items()
        for op, latency in ops.items()
        for number in range(1, processes + 1)
    ]  # fmt: skip


def said(*rows):
    """The sentences of the page's one section, by what they are about."""
    (section,) = build_content([row | {"sweep": "s", "command": ""} for own in rows for row in own]).sections
    return {
        said.between: said.sentence
        for said in (*section.costs, *section.advice)
        if "Take" not in said.between
    }


def test_each_task_says_its_latencies_and_differences_from_nhd():
    found = said(
        measured({"HND": ALIKE, "NHD": {WRITE: 8.0, READ: 100.0}, "BHLNC": {WRITE: 32.0, READ: 80.0}})
    )
    assert list(found)[:3] == [
        "Control",
        "To write a step of 32 tokens, by cuda",
        "To read a step: 32 sequences of 4,096 tokens, by cuda",
    ]
    write, read = list(found.values())[1:3]
    assert write == "NHD 8.00 µs; HND 10.0 µs, 25 % longer; BHLNC 32.0 µs, 4.00 times as long."
    assert read == ("NHD 100 µs; BHLNC 80.0 µs, 20 % shorter; HND 100 µs: none found; would have seen 11 %.")


def test_a_difference_that_would_have_been_seen_is_seen():
    def read(us):
        return said(measured({"NHD": ALIKE, "HND": {WRITE: 10.0, READ: us}}))[
            "To read a step: 32 sequences of 4,096 tokens, by cuda"
        ]

    assert "would have seen 11 %" in read(100.0)
    assert "none found" in read(110.6)
    assert "11 % longer" in read(110.8)


@pytest.mark.parametrize(("processes", "measured_in"), [(1, "in one process"), (3, "in 3 processes")])
def test_few_processes_have_no_control(processes, measured_in):
    found = said(measured({"NHD": ALIKE, "HND": ALIKE}, processes))
    assert found["Control"] == f"NHD against NHD takes repeat=4 or more; this was measured {measured_in}."


def test_nhd_is_compared_with_itself_first():
    found = said(measured({"NHD": ALIKE, "HND": ALIKE}, 4))
    assert next(iter(found)) == "Control"
    assert found["Control"] == (
        "NHD against NHD, odd rounds against even ones, at 2 points: none found; would have seen 6.6 %."
    )


def test_a_difference_of_nhd_from_itself_is_a_warning():
    rows = measured({"NHD": ALIKE, "HND": ALIKE}, 4)
    for one in rows:
        one["latency_us"] *= 3 if one["repetition"] % 2 and one["op"] == READ else 1
    assert said(rows)["Control"] == (
        "NHD against NHD, odd rounds against even ones, at 2 points: a difference at 1, where there is none; "
        "the largest is 3.00 times as fast, to read a step: 32 sequences of 4,096 tokens. "
        "Trust no smaller one below."
    )


def test_one_process_on_a_cpu_tells_no_difference():
    found = said(measured({"NHD": ALIKE, "HND": {WRITE: 30.0, READ: 900.0}}, device="cpu"))
    assert (
        found["To write a step of 32 tokens, by cuda"]
        == "NHD 10.0 µs, HND 30.0 µs; no difference can be told."
    )
    assert found["Without disaggregation"].endswith("NHD 880 µs, HND 7,440 µs; no difference can be told.")


def test_the_layout_of_the_least_step_is_chosen_with_those_that_are_not_told_from_it():
    found = said(
        measured({"NHD": ALIKE, "HND": {WRITE: 10.1, READ: 100.0}, "LHBNC": {WRITE: 50.0, READ: 200.0}})
    )
    assert found["Without disaggregation, choose NHD or HND"] == (
        "To write and to read a step of 32 tokens, in 8 layers: NHD 880 µs; LHBNC 2,000 µs, "
        "2.27 times as long; HND 881 µs: none found; would have seen 11 %."
    )


def test_where_nothing_differs_any_layout_may_be_chosen():
    assert "Without disaggregation, choose any of these layouts" in said(
        measured({"NHD": ALIKE, "HND": ALIKE})
    )


def test_with_disaggregation_each_layout_s_fastest_way_counts():
    us = {
        "NHD": {WRITE: 10.0, READ: 100.0, TRANSFER: 90_000.0},
        "HND": {WRITE: 20.0, READ: 120.0, TRANSFER: 900.0},
    }
    ways = [
        measured({name: {TRANSFER: us} for name, us in {"NHD": 1840.0, "HND": 950.0}.items()}, impl="triton")
    ]
    found = said(measured(us), *ways)
    deed = "hand 8,192 tokens to a rank of another size (TP 1 to 2, to=device)"
    assert f"To {deed}, by triton" in found
    assert "Without disaggregation, choose NHD" in found
    assert found["With disaggregation, choose HND"] == (
        f"Such a step, and once to {deed}, each by its fastest way (HND: cuda): HND 2,020 µs; NHD 2,720 µs, "
        "35 % longer. A step takes 240 µs longer in HND than in NHD: after 4 steps that is the 940 µs by "
        "which a request is handed over sooner."
    )


def test_each_destination_has_a_choice_of_its_own_whatever_the_mode_of_its_transfers():
    slow, fast = (
        {"NHD": {TRANSFER: us}, "HND": {TRANSFER: other}} for us, other in ((900.0, 50.0), (50.0, 900.0))
    )
    rows = (
        measured({"NHD": ALIKE, "HND": ALIKE}),
        measured(slow, to="host", mode="no_graph", impl="batch"),
        measured(fast, to="device", mode="no_graph"),
    )
    (section,) = build_content([row | {"sweep": "s", "command": ""} for own in rows for row in own]).sections
    choices = section.advice
    assert [choice.between for choice in choices[1:]] == [
        f"With disaggregation, choose {name}" for name in ("HND", "NHD")
    ]
    assert section.title == (
        "Choose any of these layouts without disaggregation; choose HND with disaggregation; "
        "choose NHD with disaggregation"
    )
    assert "to=host), each by its fastest way (HND: batch" in choices[1].sentence


def test_the_pieces_of_a_copy_are_said():
    rows = measured({"NHD": ALIKE | {TRANSFER: 9.0}, "HND": ALIKE | {TRANSFER: 5.0}})
    for one in rows:
        if one["op"] == TRANSFER:
            one["pieces"] = 1 if one["layout"] == "HND" else 2048
    found = said(rows)["To hand 8,192 tokens to a rank of another size (TP 1 to 2, to=device), by cuda"]
    assert found == "NHD 9.00 µs (2,048 pieces); HND 5.00 µs (1 piece), 44 % shorter."


def test_what_only_one_model_did_is_not_added_to_another_s():
    rows = [
        measured({"NHD": {op: 1.0}, "HND": {op: 1.0}}, num_heads=heads)
        for op, heads in ((WRITE, 8), (READ, 4))
    ]
    assert [about for about in said(*rows) if "disaggregation" in about] == []


def test_an_op_from_elsewhere_has_its_name():
    found = said(measured({"NHD": {WRITE: 1.0, "my_op": 2.0}, "HND": {WRITE: 1.0, "my_op": 2.0}}))
    assert "To call my_op with 32 tokens, by cuda" in found


def test_a_page_on_one_op_or_one_layout_has_no_such_sentences():
    assert said(measured({"NHD": {WRITE: 1.0}, "HND": {WRITE: 2.0}})) == {}
    assert said(measured({"NHD": ALIKE})) == {}


def test_a_transfer_alone_says_what_each_way_costs():
    found = said(
        measured({"NHD": {TRANSFER: 8000.0}, "HND": {TRANSFER: 500.0}}, to="host", impl="batch"),
        measured({"NHD": {TRANSFER: 40.0}, "HND": {TRANSFER: 40.0}}, to="device"),
    )
    hand = "To hand 8,192 tokens to a rank of another size (TP 1 to 2, to="
    assert found[f"{hand}host), by batch"] == "NHD 8,000 µs; HND 500 µs, 16.0 times as fast."
    assert found[f"{hand}device), by cuda"].startswith("NHD 40.0 µs; HND 40.0 µs: none found;")
    assert not said(measured({"NHD": {WRITE: 8.0}, "HND": {WRITE: 10.0}}))
