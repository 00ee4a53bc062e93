"""Slot mappings that people have: batches in vLLM's grammar, and recorded ones in files."""

import json
import pickle

import numpy
import pytest

from kvexp.errors import ConfigError
from kvexp.slot_mapping import Requests, check_range, format_batch, hash_slots, parse_batch, read_slots


@pytest.mark.parametrize(
    ("text", "means", "shortest"),
    [
        ("q2k", [(1, 2048, 2048)], "q2k"),
        ("8q1s1k", [(8, 1, 1024)], "8q1s1k"),
        ("2q2k_32q1s1k", [(2, 2048, 2048), (32, 1, 1024)], "2q2k_32q1s1k"),
        ("16q4s1024", [(16, 4, 1024)], "16q4s1k"),
        ("1q512s512", [(1, 512, 512)], "q512"),
    ],
)
def test_a_batch_is_read_as_vllm_reads_it(text, means, shortest):
    batch = parse_batch(text)
    assert batch == tuple(Requests(*one) for one in means)
    assert format_batch(batch) == shortest
    assert parse_batch(shortest) == batch


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *((text, "must be requests such as 8q1s1k_2q2k") for text in ("8", "q", "8q1s", "q1m", "q1__q1")),
        *((text, "must be at least 1, and all tokens") for text in ("0q1", "q0", "q2ks1k")),
    ],
)
def test_what_is_no_batch_is_one_sentence(text, said):
    with pytest.raises(ConfigError, match=said):
        parse_batch(text)


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
