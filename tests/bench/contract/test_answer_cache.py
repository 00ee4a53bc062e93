"""An answer is kept by everything that it depends on, and by nothing else."""

import importlib.metadata
import json
from dataclasses import replace

import pytest

from kvexp.bench import impl_hash
from kvexp.bench.contract import Contract, Finding, answer_cache
from kvexp.bench.contract.answer_cache import make_key
from kvexp.experiment import Choice
from tests.helpers import tiny_curve

MACHINE = dict.fromkeys(answer_cache.MACHINE, "one")
CURVE = tiny_curve.curve(num_tokens=(1, 16))
ANSWER = Contract((Finding("padding", "holds"),), (1, 16))


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ({"kv_cache_dtype": "fp8"}, False),
        ({"layout": "HND"}, False),
        ({"dtype": "half"}, False),
        ({"num_heads": 3}, False),
        ({"num_tokens": (1, 17)}, False),
        ({"block_size": 8}, False),
        ({"slots": "contiguous"}, True),
        ({"num_blocks": 16}, True),
        ({"seed": 1}, True),
    ],
    ids=str,
)
def test_another_combination_is_asked_anew_and_not_what_a_question_chooses(other, same):
    made = tiny_curve.curve(**{"num_tokens": (1, 16), **other})
    assert (make_key(made, MACHINE) == make_key(CURVE, MACHINE)) == same


@pytest.mark.parametrize("column", MACHINE)
def test_another_machine_is_asked_anew(column):
    assert make_key(CURVE, {**MACHINE, column: "another"}) != make_key(CURVE, MACHINE)


def test_another_version_of_a_peer_is_asked_anew(monkeypatch):
    version, found = importlib.metadata.version, set()
    for vllm in ("0.33.0", "0.34.0"):
        monkeypatch.setattr(importlib.metadata, "version", lambda n, v=vllm: v if n == "vllm" else version(n))
        answer_cache._read_versions.cache_clear()
        found.add(make_key(CURVE, MACHINE))
    answer_cache._read_versions.cache_clear()
    assert len(found) == 2


def test_a_changed_source_is_asked_anew(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    mine, found = replace(CURVE, impl=Choice("mine", "my_kernel.Mine")), set()
    for text in ("pass", "'''Another one.'''"):
        tmp_path.joinpath("my_kernel.py").write_text(f"class Mine:\n    {text}\n")
        impl_hash.hash_impl.cache_clear()
        found.add(make_key(mine, MACHINE))
    assert len(found) == 2


def test_an_answer_that_cannot_be_read_is_none_and_is_written_anew(monkeypatch, tmp_path):
    monkeypatch.setenv("KVEXP_CACHE_DIR", str(tmp_path))
    for text in ("", "{", "[]", "{}", json.dumps({"findings": [{"a": 1}], "sizes": []})):
        answer_cache.write(CURVE, "key", ANSWER)
        assert answer_cache.read(CURVE, "key") == ANSWER
        tmp_path.joinpath("contracts", "key.json").write_text(text)
        assert answer_cache.read(CURVE, "key") is None, text


def test_a_folder_that_cannot_be_made_costs_nothing_but_time(monkeypatch, tmp_path):
    monkeypatch.setenv("KVEXP_CACHE_DIR", str(tmp_path))
    tmp_path.joinpath("contracts").write_text("a file")
    answer_cache.write(CURVE, "key", ANSWER)
    assert answer_cache.read(CURVE, "key") is None
