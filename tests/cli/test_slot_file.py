"""A recorded slot mapping is read from a file, or refused."""

import json
import pickle

import numpy
import pytest

from kvexp.cli.slot_file import check_range, hash_slots, read_slots
from kvexp.errors import ConfigError


def test_a_file_of_either_kind_has_the_same_slots_and_hash(tmp_path):
    slots = [5, -1, 0, 17]
    numpy.save(tmp_path / "a.npy", numpy.array(slots, dtype=numpy.int32))
    (tmp_path / "a.json").write_text(json.dumps(slots))
    found = [read_slots(tmp_path / name) for name in ("a.npy", "a.json")]
    assert found == [tuple(slots)] * 2
    assert hash_slots(found[0]) == hash_slots(slots) != hash_slots([*slots, 6])
    check_range(found[0], 18, "a.npy")
    with pytest.raises(ConfigError, match=r"a.npy has slot 17, and the cache has 17: set workload"):
        check_range(found[0], 17, "a.npy")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.npy", pickle.dumps([1, 2]), "numpy array without Python objects"),
        ("a.npy", b"", "numpy array without Python objects"),
        ("a.json", b"[1, 2", "must be a JSON list of whole numbers"),
        ("a.json", b'{"slots": [1]}', "must be one list of whole numbers"),
        ("a.json", b"[[1, 2]]", "must be one list of whole numbers"),
        ("a.json", b"[1.0, true]", "must be one list of whole numbers"),
        ("a.json", b"[]", "has no slot to write"),
        ("a.json", b"[-1, -1]", "has no slot to write"),
        ("a.json", b"[3, -2]", "has slot -2; slots are numbered from 0, and padding is -1"),
        ("a.json", b"[7, 3, 7]", "has slot 7 twice"),
        ("a.json", None, "cannot read the slots of"),
    ],
)
def test_a_file_that_holds_no_mapping_is_one_sentence(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_slots(tmp_path / name)


@pytest.mark.parametrize("array", [numpy.zeros(2), numpy.ones((2, 1), int), numpy.array([{}])])
def test_an_array_of_other_things_is_refused(tmp_path, array):
    numpy.save(tmp_path / "a.npy", array)
    with pytest.raises(ConfigError, match="holds no slots"):
        read_slots(tmp_path / "a.npy")
