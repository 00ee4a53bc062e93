"""Call the library's functions in tests, and check their refusals."""

import pytest
import torch

import kvexp
from tests.helpers.oracle import DIFFKV, FLASH, PAGED

OPS = (FLASH, DIFFKV, PAGED)
SLOTS = [5, 1, 9]


def called(posed, impl="torch", **options):
    getattr(kvexp, posed.op)(*posed.arguments, impl=impl, **options)


def assert_refused(posed, kind, sentence, **options):
    before = posed.storage.clone()
    with pytest.raises(kind) as raised:
        called(posed, **options)
    assert str(raised.value) == sentence
    assert torch.equal(posed.storage, before)
