"""Padding: tokens without a slot, whose rows are nowhere and whose numbers count."""

import pytest

from tests.helpers import strides, tiny_curve
from tests.helpers.strides import FIRST, MAPPINGS, all_poison, point, reason, spoilt, verify


@pytest.mark.usefixtures("looked_at")
@pytest.mark.parametrize("padding_at", ["end", "scattered"])
class TestPadding:
    @pytest.fixture
    def padded(self, layout, padding_at):
        with point(layout=layout, padding=0.4, padding_at=padding_at) as tensors:
            yield tensors

    def test_is_not_to_be_written(self, padded):
        verify(lambda: strides.write(padded), padded, FIRST)
        assert all_poison(padded.cache)

    def test_a_wrong_token_has_its_number_among_all(self, padded):
        total = MAPPINGS * 10 * 2 * 32
        for token in padded.unpadded.tolist():
            slot = int(padded.slot_mappings[1, token])
            found = reason(padded, spoilt(padded, "value_cache", slot, 1, 2))
            assert found.startswith(f"{100 / total:.3g} % of the {total} elements written to value_cache")
            assert f"the first at token {token}, head 1, element 2 (slot {slot})" in found

    def test_a_row_in_the_slot_that_it_would_have_had_is_a_byte_outside(self, padded):
        bare = padded.memory.build(tiny_curve.case(num_tokens=16), MAPPINGS)
        assert "a byte outside" in reason(padded, lambda: strides.write(bare))

    def test_that_was_changed_is_a_changed_input(self, padded):
        token = next(token for token in range(16) if token not in padded.unpadded)

        def run():
            strides.write(padded)
            padded.slot_mappings[0, token] = -2

        assert reason(padded, run) == "the call changed its inputs: keys, values, slots or scales"
