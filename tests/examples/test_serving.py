"""examples/serving serves a tiny model with kvexp's cache, finds a wrong one, and counts what it served."""

import dataclasses
import json
import sys
from dataclasses import replace

import pytest
import torch

from examples.serving import __main__ as program
from examples.serving import prediction
from examples.serving.attention import PagedCache, plan_step
from examples.serving.options import Options, parse
from kvexp.errors import ConfigError
from tests.helpers.recorded_rows import row

TINY = ("model=tiny", "device=cpu", "dtype=float", "tracking=none", "cache_gb=0.02", "max_batch_tokens=48")
FEW = ("requests=5", "new_tokens=4", "mean_tokens=40", "rounds=1", "check=3")
"""Prompts are longer than a step takes tokens: they are read in parts, beside requests that decode."""


SOME_LAYOUTS = ("NHD", "HND", "BHLNC")


@pytest.fixture
def serving():
    """The module that serves; it imports transformers for seconds, and every process collects this file."""
    from examples.serving import serve

    return serve


@pytest.fixture
def figures():
    """The module of the figures, which imports what serves."""
    from examples.serving import figures

    return figures


def serve(*words):
    """Serve; what is typed here replaces the usual words."""
    chosen = dict(word.split("=") for word in (*TINY, *FEW, *words))
    return program.main([f"{key}={value}" for key, value in chosen.items()])


def read_rounds(folder):
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def test_layouts_serve_as_the_model_s_own_attention_and_a_round_once(
    tmp_path, capsys, monkeypatch, serving, figures
):
    assert serve(f"layout={','.join(SOME_LAYOUTS)}", f"out={tmp_path}") == 0
    assert "their tokens are the same in all layouts" in capsys.readouterr().out
    rounds = read_rounds(tmp_path)
    assert {one["layout"] for one in rounds} == set(SOME_LAYOUTS)
    for one in rounds:
        found = one["figures"]
        assert (found["requests"], found["generated_tokens"]) == (5, 20)
        assert found["input_tokens"] == sum(map(len, serving.make_prompts(parse([*TINY, *FEW]), 5)))
        assert 0 < found["median_ttft_ms"] < 1e3 * found["duration_s"]
    # The same command serves nothing again.
    monkeypatch.setattr(figures, "compute", None)
    assert serve("layout=HND", "check=1", f"out={tmp_path}") == 0
    assert read_rounds(tmp_path) == rounds
    assert serve("layout=HND", "seed=1", f"out={tmp_path}") == 2
    assert "rounds of other options" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["decode", "read_rows", "write"])
def test_a_wrong_cache_is_found(part, tmp_path, capsys, monkeypatch):
    right = getattr(PagedCache, part)

    def wrong(self, layer, *arguments):
        *others, last = arguments
        if part == "decode":  # a token less
            last = replace(last, seq_lens=last.seq_lens - 1)
        else:  # the slots of the block before
            last = (last - self.block_size).clamp(min=0)
        return right(self, layer, *others, last)

    monkeypatch.setattr(PagedCache, part, wrong)
    assert serve("layout=HND", f"out={tmp_path}") == 1
    assert "of the model's own attention, and rounding explains" in capsys.readouterr().err
    assert not (tmp_path / "rounds.jsonl").exists()


def test_a_step_is_split_into_prompts_and_requests_that_decode():
    # A request of 5 tokens that has 8, one that decodes its 6th, one of 2 tokens without a past.
    reads = torch.tensor([*range(32, 40), *range(16, 22), 50, 51])
    step = plan_step(4, torch.tensor([0, 5, 6, 8]), torch.tensor([0, 8, 14, 16]), reads)
    assert [(one.rows, one.context) for one in step.prompts] == [(slice(0, 5), 8), (slice(6, 8), 2)]
    assert step.prompts[0].slots.tolist() == list(range(32, 40))
    assert step.prompts[1].slots is None
    assert (step.decoding.tolist(), step.seq_lens.tolist()) == ([5], [6])
    assert step.block_table.tolist() == [[4, 5]]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["layout=NHD,head_major"], "layout=head_major is no layout of a paged read; choose of NHD, HND"),
        (["layout=NHD,NHD"], "names a layout twice"),
        (["model=gpt"], "model=gpt must be qwen3_0_6b or qwen3_14b or tiny"),
        (["requests=none"], "requests must be a whole number, not 'none'"),
        (["requests=0"], "requests must be from 1"),
        (["request=4"], "'request=4' is none of layout=, model=, requests="),
        (["requests=4", "requests=5"], "requests is typed twice"),
    ],
)
def test_wrong_words_are_one_sentence(words, sentence, capsys):
    assert program.main(words) == 2
    assert sentence in capsys.readouterr().err


def test_a_cache_too_small_for_a_request_is_refused(tmp_path, capsys):
    assert serve("layout=NHD", "cache_gb=0.001", "mean_tokens=4000", f"out={tmp_path}") == 1
    assert "and a request needs up to" in capsys.readouterr().err


def test_another_transformers_or_none_is_refused(capsys, monkeypatch):
    import transformers

    with monkeypatch.context() as patched:
        patched.setattr(transformers, "__version__", "6.0.1")
        assert serve() == 2
    assert capsys.readouterr().err == "serving: serving knows transformers 5.17, not 6.0.1\n"
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert serve() == 2
    assert "pip install 'kvexp[serving]'" in capsys.readouterr().err


def test_figures_are_those_of_the_tokens_times(serving, figures):
    one = serving.Served([1] * 10, [2, 3, 4], [0.0] * 3, arrival_s=1.0, times_s=[1.5, 1.6, 1.8])
    other = serving.Served([1] * 30, [2], [0.0], arrival_s=2.0, times_s=[3.0])
    found = figures.compute([one, other])
    assert found["duration_s"] == pytest.approx(2.0)
    assert (found["requests"], found["input_tokens"], found["generated_tokens"]) == (2, 40, 4)
    assert found["tokens_per_s"] == pytest.approx(22)
    assert found["mean_ttft_ms"] == pytest.approx(750)
    assert found["mean_tpot_ms"] == pytest.approx(150)
    assert (found["median_itl_ms"], found["p99_itl_ms"]) == pytest.approx((150, 199))
    table = figures.format_table(found).splitlines()
    assert table[1] == f"{'Successful requests:':<40}2"
    assert f"{'Mean TTFT (ms):':<40}750.00" in table
    assert len(table) == 21


def test_a_difference_has_an_interval_over_rounds(figures):
    rounds = [{"NHD": {"duration_s": 100.0 + i}, "HND": {"duration_s": 1.05 * (100 + i)}} for i in range(3)]
    assert figures.compare(rounds, "NHD", "HND", "duration_s").startswith(
        "HND against NHD, duration_s: +5.00 % (+5.00 to +5.00 %, 3 rounds)"
    )
    for one, factor in zip(rounds, (0.99, 1.0, 1.01), strict=True):
        one["HND"] = {"duration_s": factor * one["NHD"]["duration_s"]}
    assert "none found; would have seen 2.5 % (3 rounds)" in figures.compare(
        rounds, "NHD", "HND", "duration_s"
    )
    assert "is too few to tell" in figures.compare(rounds[:2], "NHD", "HND", "duration_s")


def test_kernels_predict_a_step_s_change(monkeypatch, tmp_path):
    us = {("reshape_and_cache_flash", "NHD"): 2.0, ("reshape_and_cache_flash", "HND"): 3.0}
    us |= {("paged_decode", "NHD"): 100.0, ("paged_decode", "HND"): 104.0}
    rows = [row(value, op=op, layout=layout, num_tokens=32) for (op, layout), value in us.items()]
    monkeypatch.setattr(prediction.load, "read", lambda names, default: rows)
    found = prediction.predict(tmp_path, "NHD", "HND", layers=10, step_ms=5.0)
    assert found == (
        "by kernels alone a step with HND takes +50.0 us more than with NHD: +1.00 % of a step of 5.0 ms, of "
        "which writing and reading take 20.4 %"
    )
    with pytest.raises(ConfigError, match="no size of op=reshape_and_cache_flash in both of NHD and BHLNC"):
        prediction.predict(tmp_path, "NHD", "BHLNC", layers=10, step_ms=5.0)


def test_requests_arrive_at_once_or_at_a_rate(serving):
    at_once, some = parse([]), parse(["rate=4"])
    assert serving.draw_arrivals(at_once, 3) == [0.0] * 3
    times = serving.draw_arrivals(some, 4000)
    assert times == sorted(times)
    assert 4000 / times[-1] == pytest.approx(4, rel=0.1)
    assert serving.count_blocks(at_once) == int(40e9 // (2 * 8 * 128 * 28 * 2 * 16))


def test_lengths_of_the_seed_s_requests(serving):
    lengths = [len(prompt) for prompt in serving.make_prompts(parse([]), 982)]
    assert sum(lengths) / 982 == pytest.approx(1777, rel=0.03)
    assert (min(lengths) >= 889, max(lengths) <= 2665) == (True, True)


def test_the_help_says_each_keys_default(capsys):
    assert program.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "    cache_gb: Gigabytes of a layout's cache. [default 40.0]\n" in text
    assert text.count(" [default ") == len(dataclasses.fields(Options))
