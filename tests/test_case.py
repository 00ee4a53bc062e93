"""A batch is read as vLLM reads it."""

import pytest

from kvexp.case import Requests, format_batch, parse_batch
from kvexp.errors import ConfigError


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
