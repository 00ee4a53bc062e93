"""layout=auto: who is asked first, what names mean, and what an op writes instead."""

from itertools import product

import pytest

from kvexp import op as ops
from kvexp.errors import ConfigError
from kvexp.layout import load_layouts
from kvexp.layout.selection import ALIASES, FLASHINFERS, OURS, VLLMS, Selection, list_variables, select
from tests.helpers import compose
from tests.helpers.oracle import DIFFKV, FLASH, PAGED

NAMES = tuple(load_layouts())
TWINS = {name: ops.load(name).twins for name in ops.list_names()}
NOBODY = "no variable names a layout and connector=none asks for none"


def test_the_names_are_those_of_the_layouts_in_conf():
    assert sorted(NAMES) == compose.options("layout")


def test_without_a_wish_nhd_is_selected():
    assert select(FLASH, {}) == Selection("NHD", NOBODY)


@pytest.mark.parametrize("connector", compose.options("connector"))
def test_a_connector_s_wish_is_its_own(connector):
    wishes = {"nixl": "HND", "mooncake": "HND", "offloading": "HND", "hisparse": "HND_packed"}
    wish = wishes.get(connector)
    made = compose.experiment("layout=auto", f"connector={connector}")
    assert made.layout.name == (wish or "NHD")
    asks = f"connector={connector} asks for {wish}"
    none = f"no variable names a layout and connector={connector} asks for none"
    assert made.layout_reason == (asks if wish else none)


@pytest.mark.parametrize(
    ("environ", "layout", "reason"),
    [
        ({OURS: "HND_packed", VLLMS: "NHD"}, "HND_packed", f"{OURS}=HND_packed"),
        ({OURS: "NHD"}, "NHD", f"{OURS}=NHD"),
        ({VLLMS: "NHD"}, "NHD", f"{VLLMS}=NHD"),
        ({OURS: "", VLLMS: "NHD"}, "NHD", f"{VLLMS}=NHD"),
        ({VLLMS: "NHD", FLASHINFERS: "HND"}, "NHD", f"{VLLMS}=NHD"),
        ({OURS: "HND_packed", FLASHINFERS: "NHD"}, "HND_packed", f"{OURS}=HND_packed"),
        ({FLASHINFERS: "NHD"}, "NHD", f"{FLASHINFERS}=NHD"),
        ({OURS: "", VLLMS: "", FLASHINFERS: "NHD"}, "NHD", f"{FLASHINFERS}=NHD"),
        ({OURS: "", VLLMS: "", FLASHINFERS: ""}, "HND", "connector=nixl asks for HND"),
        ({}, "HND", "connector=nixl asks for HND"),
    ],
)
def test_our_variable_comes_before_vllms_before_flashinfers_before_the_connector(environ, layout, reason):
    assert select(FLASH, environ, "connector=nixl", "HND") == Selection(layout, reason)


@pytest.mark.parametrize("name", ["NHD", "HND"])
def test_the_seed_s_variable_takes_the_names_that_flashinfer_knows(name):
    assert select(FLASH, {FLASHINFERS: name}) == Selection(name, f"{FLASHINFERS}={name}")


@pytest.mark.parametrize("name", NAMES)
def test_our_variable_takes_every_layout(name):
    assert select(FLASH, {OURS: name}) == Selection(name, f"{OURS}={name}")


@pytest.mark.parametrize(
    ("name", "layout"),
    [("NHD", "NHD"), ("HND", "HND"), ("LBNHC", "NHD_packed"), ("BLNHC", "NHD_packed"),
     ("LBHNC", "HND_packed"), ("BLHNC", "HND_packed"), ("BHLNC", "BHLNC"), ("LHBNC", "LHBNC")],
)  # fmt: skip
def test_vllms_names_are_of_its_packed_caches(name, layout):
    assert select(FLASH, {VLLMS: name}) == Selection(layout, f"{VLLMS}={name}")


def test_every_alias_is_of_a_layout():
    assert set(ALIASES.values()) <= set(NAMES)
    assert not set(ALIASES) & set(NAMES)


@pytest.mark.parametrize(
    ("variable", "valid"),
    [
        (OURS, "NHD, HND, NHD_packed, HND_packed, BHLNC, LHBNC, head_major, mla, indexer"),
        (VLLMS, "NHD, HND, LBNHC, LBHNC, BLNHC, BLHNC, BHLNC, LHBNC"),
        (FLASHINFERS, "NHD, HND"),
    ],
)
@pytest.mark.parametrize("value", ["nhd", "NDH", "%s", " NHD", "auto"])
def test_an_unknown_name_is_refused_with_the_valid_ones(variable, valid, value):
    with pytest.raises(ConfigError) as raised:
        select(FLASH, {variable: value})
    assert str(raised.value) == f"{variable}={value} is not a layout; it can be {valid}"


def test_each_variable_keeps_to_its_own_names():
    for variable, value in (
        (OURS, "LBNHC"),
        (VLLMS, "NHD_packed"),
        (VLLMS, "head_major"),
        (FLASHINFERS, "LBNHC"),
        (FLASHINFERS, "BHLNC"),
        (FLASHINFERS, "HND_packed"),
    ):
        with pytest.raises(ConfigError, match=f"{variable}={value} is not a layout"):
            select(FLASH, {variable: value})


class TestTwins:
    @pytest.mark.parametrize(("wish", "twin"), [("NHD", "NHD_packed"), ("HND", "HND_packed")])
    def test_diffkv_takes_the_packed_one(self, wish, twin):
        assert select(DIFFKV, {OURS: wish}, twins=TWINS[DIFFKV]) == Selection(
            twin, f"{OURS}={wish}; {twin} is what reshape_and_cache_flash_diffkv writes for {wish}"
        )

    @pytest.mark.parametrize("wish", [name for name in NAMES if name != "head_major"])
    def test_reshape_and_cache_takes_head_major(self, wish):
        assert select(PAGED, {OURS: wish}, twins=TWINS[PAGED]) == Selection(
            "head_major", f"{OURS}={wish}; head_major is what reshape_and_cache writes for {wish}"
        )

    def test_what_an_op_writes_itself_needs_none(self):
        for op, layout in compose.pairs():
            assert select(op, {OURS: layout}, twins=TWINS[op]) == Selection(layout, f"{OURS}={layout}")

    def test_are_what_the_op_writes(self):
        for op, layout in ((op, twin) for op, twins in TWINS.items() for twin in twins.values()):
            assert compose.takes(op, layout)

    @pytest.mark.parametrize("op", compose.all_cache_writes())
    def test_leave_no_op_without_a_layout_whatever_an_engine_would_say(self, op):
        for variable, names in (
            (VLLMS, list_variables()[VLLMS]),
            (FLASHINFERS, list_variables()[FLASHINFERS]),
            (OURS, ("NHD", "HND")),
        ):
            for name, wish in product(("", *names), (None, "HND")):
                found = select(op, {variable: name}, "some", wish, TWINS[op])
                assert compose.takes(op, found.layout)
