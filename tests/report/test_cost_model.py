"""The cost of a copy in pieces is fitted where the rows allow it, and is never negative."""

from itertools import product

import numpy as np
import pytest

from kvexp.report.content import build_content
from kvexp.report.cost_model import solve
from tests.helpers.recorded_rows import curve, row

PIECES = list(product((8, 512, 4096), (1024, 16384)))
"""Numbers of pieces, and the bytes of each."""


def transfers(points, us, **columns):
    """A row for each of these points, of one layout and size each."""
    return [
        row(us(pieces, size), op="transfer", num_tokens=number, pieces=pieces, piece_bytes=size, **columns)
        for number, (pieces, size) in enumerate(points, 1)
    ]


def fits(*curves):
    """The fits of a report's one section."""
    rows = [row | {"sweep": "s", "command": ""} for rows in curves for row in rows]
    (section,) = build_content(rows).sections
    return section.fits


def test_a_model_that_holds_is_found_exactly():
    (fit,) = fits(transfers(PIECES, lambda pieces, size: 5 + 0.25 * pieces + pieces * size / 2e6))
    assert (fit.start_us, fit.us_per_piece, fit.gb_per_s) == pytest.approx((5, 0.25, 2000))
    assert fit.errors == pytest.approx([0] * len(PIECES), abs=1e-9)
    assert fit.cells == ("5.00", "0.25", "2,000", "0.0 %", "0.0 %")
    assert (fit.way, fit.points, fit.missing) == ("transfer cuda", len(PIECES), "")


def test_where_all_move_as_many_bytes_there_is_no_start():
    points = [(131072, 1024), (8192, 16384), (4096, 32768), (512, 262144)]
    (fit,) = fits(transfers(points, lambda pieces, size: 2e-5 * pieces + pieces * size / 2e6))
    assert (fit.start_us, fit.us_per_piece, fit.gb_per_s) == pytest.approx((0, 2e-5, 2000))


def test_layouts_sizes_and_ranks_share_a_model_and_implementations_and_modes_do_not():
    def cost(pieces, size):
        return 1 + pieces * size / 1e6

    shared = [
        transfers([point], cost, layout=layout, num_heads=heads, tp_to=ranks)
        for point, layout, heads, ranks in zip(
            PIECES, ("NHD", "HND") * 3, range(8, 14), range(2, 8), strict=True
        )
    ]
    others = [transfers(PIECES, cost, impl="torch"), transfers(PIECES, cost, mode="no_graph")]
    found = fits(*shared, *others)
    assert [(fit.way, fit.points) for fit in found] == [
        ("transfer cuda cudagraph", 6),
        ("transfer torch cudagraph", 6),
        ("transfer cuda no_graph", 6),
    ]


def test_no_coefficient_is_negative_and_a_bandwidth_that_is_not_seen_is_a_dash():
    (fit,) = fits(transfers(PIECES, lambda pieces, size: 3 + 0.5 * pieces - pieces * size / 1e9))
    assert (fit.gb_per_s, fit.cells[2]) == (None, "–")
    assert fit.start_us > 0
    assert 0 < fit.us_per_piece < 0.5


def test_the_least_relative_errors_without_a_negative_number_are_found():
    chance = np.random.default_rng(0)
    for _ in range(20):
        terms, times = chance.uniform(0, 1, (9, 3)), chance.uniform(0.5, 2, 9)

        def rest(found, terms=terms, times=times):
            return np.sum(((terms @ found - times) / times) ** 2)

        found = solve(terms, times)
        assert found.min() >= 0
        others = (np.maximum(found + step, 0) for step in chance.normal(0, 0.05, (200, 3)))
        assert all(rest(other) >= rest(found) - 1e-12 for other in others)


def test_too_few_points_are_said():
    repeated = transfers([(8, 1024)] * 5 + [(16, 1024), (8, 2048)], lambda *_: 1.0)
    (fit,) = fits(repeated)
    assert fit.missing == (
        "a fit takes 4 transfers that differ in number or size of pieces, not 3; "
        "measure more layouts or workload.num_tokens"
    )


def test_pieces_of_one_size_are_said():
    (fit,) = fits(transfers([(count, 1024) for count in (1, 2, 4, 8, 16)], lambda count, _: count))
    assert fit.missing == "all pieces have 1,024 bytes; measure another layout, which has others"


def test_what_has_no_pieces_has_no_model():
    assert fits(curve({1: 2.0, 64: 3.0})) == ()
