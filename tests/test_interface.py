"""What users and files rely on is as tests/interface.json says."""

import json
from pathlib import Path

import pytest

import kvexp
from tests.helpers import interface

HELD = json.loads(Path(__file__).with_name(interface.FILE).read_text("utf-8"))


@pytest.fixture(scope="module")
def found():
    return json.loads(json.dumps(interface.interface()))


def test_the_public_names_are_listed():
    assert dir(kvexp) == sorted(kvexp.__all__)


@pytest.mark.parametrize("what", HELD)
def test_it_is_as_it_was(found, what):
    assert found[what] == HELD[what]
