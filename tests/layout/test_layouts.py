"""What every layout of conf/ owes: planes that share nothing and miss nothing, rows that come back."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from kvexp.impl import make
from tests.helpers import compose
from tests.helpers.oracle import Sizes
from tests.helpers.strides import PACKED_ORDERS, packed_items

BLOCKS, SIZE, HEADS, ITEMS = 3, 4, 2, 16
SIZES = Sizes(BLOCKS, SIZE, HEADS, ITEMS, ITEMS)
LAYOUTS = {name: make(compose.choice("layout", name)) for name in compose.layouts()}
FLASH = [name for name, layout in LAYOUTS.items() if layout.shape == "flash"]
PACKED = [name for name, layout in LAYOUTS.items() if layout.packed]
LAYERED_BLOCKS = sorted({*LAYOUTS} - {"BHLNC", "LHBNC", "head_major"})
"""Those whose blocks hold one layer whole, then the next."""

# All layers of a cache, also of more than one, and value heads of their own size.
MANY = [
    (layers, item_bytes, head_size_v)
    for layers, item_bytes, head_size_v in product((1, 2, 3), (1, 2, 4), (ITEMS, 48))
]


@pytest.fixture(params=list(LAYOUTS))
def layout(request):
    return LAYOUTS[request.param]


def view(plane, items):
    return items.as_strided(plane.shape, plane.strides, plane.offset)


def planes(layout, items, sizes=SIZES, item_bytes=2, layer=0):
    made = layout.planes(sizes, item_bytes, layer)
    return [view(plane, items) for plane in (made.key, made.value)]


def rows_of(layout, plane):
    """The plane as `[num_slots, num_heads, head_size]`, by its shape alone."""
    if layout.shape == "flash":
        return plane.reshape(-1, *plane.shape[2:])
    pieces = plane if plane.dim() == 5 else plane.unsqueeze(-1)
    return pieces.permute(0, 3, 1, 2, 4).reshape(BLOCKS * SIZE, HEADS, -1)


def test_a_layout_has_the_name_of_its_yaml():
    assert {name: layout.name for name, layout in LAYOUTS.items()} == {name: name for name in LAYOUTS}


@pytest.mark.parametrize(("layers", "item_bytes", "head_size_v"), MANY)
def test_each_item_of_the_storage_belongs_to_one_place_of_one_layers_planes(
    layout, layers, item_bytes, head_size_v
):
    sizes = replace(SIZES, num_layers=layers, head_size_v=head_size_v)
    items = torch.arange(layout.planes(sizes, item_bytes).items)
    assert len(items) == layers * BLOCKS * SIZE * HEADS * (ITEMS + head_size_v)
    every = [plane for layer in range(layers) for plane in planes(layout, items, sizes, item_bytes, layer)]
    assert torch.equal(torch.cat([plane.flatten() for plane in every]).sort().values, items)


@pytest.mark.parametrize("name", LAYERED_BLOCKS)
@pytest.mark.parametrize(("layers", "item_bytes", "head_size_v"), MANY)
def test_the_layers_of_a_block_follow_one_another(name, layers, item_bytes, head_size_v):
    sizes = replace(SIZES, num_layers=layers, head_size_v=head_size_v)
    items = torch.arange(LAYOUTS[name].planes(sizes, item_bytes).items)
    each = len(items) // BLOCKS // layers
    for layer in range(layers):
        for plane in planes(LAYOUTS[name], items, sizes, item_bytes, layer):
            for block in range(BLOCKS):
                assert (plane[block] // each == block * layers + layer).all()


@pytest.mark.parametrize(("layers", "item_bytes", "head_size_v"), MANY)
def test_head_major_has_k_of_all_blocks_then_v_of_all_blocks_of_one_layer_after_the_other(
    layers, item_bytes, head_size_v
):
    sizes = replace(SIZES, num_layers=layers, head_size_v=head_size_v)
    items = torch.arange(LAYOUTS["head_major"].planes(sizes, item_bytes).items)
    both = [plane for layer in range(layers)
            for plane in planes(LAYOUTS["head_major"], items, sizes, item_bytes, layer)]  # fmt: skip
    assert all(plane.is_contiguous() for plane in both)
    assert torch.equal(torch.cat([plane.flatten() for plane in both]), items)


@pytest.mark.parametrize("name", FLASH)
def test_flash_planes_have_equal_strides_and_a_contiguous_last_dim(name):
    made = LAYOUTS[name].planes(SIZES, 2)
    assert made.key.strides == made.value.strides
    assert made.key.strides[-1] == 1
    assert made.key.shape == made.value.shape == (BLOCKS, SIZE, HEADS, ITEMS)


@pytest.mark.parametrize("side", [0, 1], ids=["key", "value"])
@pytest.mark.parametrize(("layers", "item_bytes", "head_size_v"), MANY)
def test_what_is_scattered_is_gathered_and_nothing_else_is_touched(
    layout, layers, item_bytes, head_size_v, side
):
    sizes = replace(SIZES, num_layers=layers, head_size_v=head_size_v)
    items = torch.full((layout.planes(sizes, item_bytes).items,), -1)
    plane = planes(layout, items, sizes, item_bytes, layer=layers - 1)[side]
    width = (ITEMS, head_size_v)[side]
    slots = torch.tensor([11, 0, 6])
    rows = torch.arange(3 * HEADS * width).view(3, HEADS, width)
    layout.scatter(plane, slots, rows)
    assert torch.equal(layout.gather(plane, slots), rows)
    assert int((items != -1).sum()) == rows.numel()
    assert torch.equal(rows_of(layout, plane)[slots], rows)


@pytest.mark.parametrize("side", [0, 1], ids=["key", "value"])
def test_rows_of_one_token_are_scattered_to_every_slot(layout, side):
    items = torch.zeros(layout.planes(SIZES, 2).items, dtype=torch.int64)
    plane = planes(layout, items)[side]
    row = torch.arange(HEADS * ITEMS).view(1, HEADS, ITEMS)
    layout.scatter(plane, torch.tensor([3, 4, 9]), row)
    assert torch.equal(rows_of(layout, plane)[[3, 4, 9]], row.expand(3, -1, -1))


@pytest.mark.parametrize("side", [0, 1], ids=["key", "value"])
def test_one_byte_is_scattered_to_whole_rows(layout, side):
    items = torch.zeros(layout.planes(SIZES, 1).items, dtype=torch.uint8)
    both = planes(layout, items, item_bytes=1)
    layout.scatter(both[side], torch.tensor([5]), 7)
    assert rows_of(layout, both[side])[5].unique().tolist() == [7]
    assert int(both[side].sum()) == 7 * HEADS * ITEMS
    assert int(both[1 - side].sum()) == 0


@pytest.mark.parametrize("side", [0, 1], ids=["key", "value"])
def test_a_gathered_row_is_a_contiguous_copy(layout, side):
    items = torch.zeros(layout.planes(SIZES, 2).items)
    gathered = layout.gather(planes(layout, items)[side], torch.tensor([5, 1]))
    assert gathered.shape == (2, HEADS, ITEMS)
    assert gathered.is_contiguous()
    gathered.fill_(1)
    assert int(items.sum()) == 0


@pytest.mark.parametrize(
    ("name", "order"),
    [("NHD", (BLOCKS, 2, SIZE, HEADS, ITEMS)), ("HND", (BLOCKS, 2, HEADS, SIZE, ITEMS))],
)
def test_the_physical_order_of_two_planes_is_vllm_s(name, order):
    items = torch.arange(LAYOUTS[name].planes(SIZES, 2).items)
    for side, plane in enumerate(planes(LAYOUTS[name], items)):
        physical = items.view(order)[:, side]
        assert torch.equal(plane, physical if name == "NHD" else physical.transpose(1, 2))


@pytest.mark.parametrize("head_size_v", [ITEMS, 48, 8])
@pytest.mark.parametrize("name", PACKED)
class TestPacked:
    @pytest.mark.parametrize("layers", [1, 2, 5])
    def test_the_physical_order_is_that_of_vllm_s_name(self, name, head_size_v, layers):
        sizes = replace(SIZES, head_size_v=head_size_v, num_layers=layers)
        for layer in range(layers):
            made = LAYOUTS[name].planes(sizes, 2, layer)
            assert torch.equal(view(made.packed, torch.arange(made.items)), packed_items(name, sizes, layer))

    def test_one_plane_is_k_then_v_in_each_head(self, name, head_size_v):
        made = LAYOUTS[name].planes(replace(SIZES, head_size_v=head_size_v), 2)
        items = torch.arange(made.items)
        both = torch.cat([view(made.key, items), view(made.value, items)], dim=-1)
        assert torch.equal(view(made.packed, items), both)


def test_every_packed_layout_has_a_name_of_vllm_s():
    assert sorted(PACKED_ORDERS) == sorted(PACKED)


@pytest.mark.parametrize("item_bytes", [1, 2, 4])
def test_head_major_puts_an_element_where_vllm_does(item_bytes):
    x = 16 // item_bytes
    items = torch.arange(LAYOUTS["head_major"].planes(SIZES, item_bytes).items)
    key, value = planes(LAYOUTS["head_major"], items, item_bytes=item_bytes)
    of_a_block = HEADS * ITEMS * SIZE
    for block, head, i, offset in product(range(BLOCKS), range(HEADS), range(ITEMS), range(SIZE)):
        begin = block * of_a_block
        at = begin + ((head * (ITEMS // x) + i // x) * SIZE + offset) * x + i % x
        assert key[block, head, i // x, offset, i % x] == at
        first_value = BLOCKS * of_a_block
        assert value[block, head, i, offset] == first_value + begin + (head * ITEMS + i) * SIZE + offset
