"""What every layout of conf/ owes, and where the two of vLLM put an element."""

import pytest
import torch

from kvexp.case import Case
from kvexp.impl import make
from tests import composed

BLOCKS, SIZE, HEADS, ITEMS = 3, 4, 2, 8
CASE = Case(
    op="", impl="", impl_options="", layout="", dtype="", kv_cache_dtype="", mode="", timer="",
    timer_options="", device="cpu", num_tokens=1, num_heads=HEADS, head_size=ITEMS, head_size_v=ITEMS,
    block_size=SIZE, num_blocks=BLOCKS, slots="random", seed=0,
)  # fmt: skip
LAYOUTS = {name: make(composed.choice("layout", name)) for name in composed.options("layout")}


@pytest.fixture(params=list(LAYOUTS))
def layout(request):
    return LAYOUTS[request.param]


def planes(layout, items):
    made = layout.planes(CASE, 2)
    return [items.as_strided(p.shape, p.strides, p.offset) for p in (made.key, made.value)]


def test_a_layout_goes_by_its_yaml_s_name():
    assert {name: layout.name for name, layout in LAYOUTS.items()} == {name: name for name in LAYOUTS}


def test_each_item_of_the_storage_belongs_to_one_place_of_one_plane(layout):
    items = torch.arange(layout.planes(CASE, 2).items)
    key, value = planes(layout, items)
    assert torch.equal(torch.cat([key.flatten(), value.flatten()]).sort().values, items)


def test_the_planes_have_equal_strides_and_a_contiguous_last_dim(layout):
    made = layout.planes(CASE, 2)
    assert made.key.strides == made.value.strides
    assert made.key.strides[-1] == 1


def test_what_is_scattered_is_gathered_and_nothing_else_is_touched(layout):
    items = torch.full((layout.planes(CASE, 2).items,), -1)
    slots = torch.tensor([11, 0, 6])
    rows = torch.arange(3 * HEADS * ITEMS).view(3, HEADS, ITEMS)
    _, value = planes(layout, items)
    layout.scatter(value, slots, rows)
    assert torch.equal(layout.gather(value, slots), rows)
    assert int((items != -1).sum()) == rows.numel()
    for token, slot in enumerate(slots.tolist()):
        assert torch.equal(value[slot // SIZE, slot % SIZE], rows[token])


def test_one_byte_is_scattered_to_whole_rows(layout):
    items = torch.zeros(layout.planes(CASE, 2).items, dtype=torch.uint8)
    key, value = planes(layout, items)
    layout.scatter(key, torch.tensor([5]), 7)
    assert key[1, 1].unique().tolist() == [7]
    assert int(key.sum()) == 7 * HEADS * ITEMS
    assert int(value.sum()) == 0


def test_a_gathered_row_is_a_copy(layout):
    items = torch.zeros(layout.planes(CASE, 2).items)
    key, _ = planes(layout, items)
    layout.gather(key, torch.tensor([5])).fill_(1)
    assert int(items.sum()) == 0


@pytest.mark.parametrize(
    ("name", "order"),
    [("NHD", (BLOCKS, 2, SIZE, HEADS, ITEMS)), ("HND", (BLOCKS, 2, HEADS, SIZE, ITEMS))],
)
def test_the_physical_order_is_vllm_s(name, order):
    items = torch.arange(LAYOUTS[name].planes(CASE, 2).items)
    for side, plane in enumerate(planes(LAYOUTS[name], items)):
        physical = items.view(order)[:, side]
        assert torch.equal(plane, physical if name == "NHD" else physical.transpose(1, 2))
