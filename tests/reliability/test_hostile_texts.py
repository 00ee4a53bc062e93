"""Texts of rows, of folders' names and of kernels are shown as they are: none steers a terminal or a page."""

import json
import logging
import os
import pty
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from kvexp import cli
from kvexp.host import terminal
from kvexp.report import render
from tests.helpers.recorded_rows import curve, refused, sweep
from tests.reliability.conftest import TINY

LINE = "\x1b]0;owned\x07\x1b[2J\x9b31m\x08\u202e"
STEERS = f"{LINE}\r\u2028"
SHOWN = r"\x1b]0;owned\x07\x1b[2J\x9b31m\x08\u202e"
MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """A sweep of someone else's, in each text of which a terminal is told something."""
    monkeypatch.chdir(tmp_path)
    words = {"impl_options": json.dumps({"flags": STEERS}), "throttled": LINE, "contract": LINE}
    curves = [
        curve({1: 2.0, 8: 3.0}, impl=f"a{LINE}", device_name=LINE, **words),
        curve({1: 2.0, 8: 3.0}, impl="b", device_name=LINE),
        [refused("failed", f"{STEERS}\nsecond{STEERS}", impl="c")],
    ]
    folder = sweep(tmp_path / "theirs" / f"s{STEERS}", curves)
    shutil.rmtree(folder / "0" / ".hydra")  # YAML holds no such texts
    return folder


def is_calm(text):
    """Whether nothing in the text steers a terminal."""
    return all(letter.isprintable() or letter in "\n\t" for letter in text)


@pytest.mark.parametrize(
    "words",
    [
        ("compare", "THEIRS", "THEIRS"),
        ("compare", "THEIRS", "--axis", "impl", "--baseline", "b", "--candidate", "d"),
        ("compare", "THEIRS", "--axis", "impl", "--baseline", "b", "--candidate", f"a{LINE}"),
        ("compare", "THEIRS", "THEIRS/gone"),
        ("watch", "THEIRS", "--once"),
        ("report", "THEIRS"),
        ("export", "THEIRS", "--output", "THEIRS/points.csv"),
        ("sync", "THEIRS/gone"),
        (f"resume=THEIRS{STEERS}",),
        (f"impl={STEERS}",),
    ],
    ids=lambda words: words[0][:7],
)
def test_no_command_lets_a_text_steer_the_terminal(theirs, capfd, words):
    cli.dispatch([word.replace("THEIRS", str(theirs)) for word in words])
    out, err = capfd.readouterr()
    assert (is_calm(out), is_calm(err), out + err == "") == (True, True, False)


def test_watching_shows_what_stands_there(theirs, capfd):
    assert cli.dispatch(["watch", str(theirs), "--once"]) == 0
    # rich leaves a bell and its like out
    shown = r"theirs/s\x1b]0;owned\x1b[2J\x9b31m\u202e\u2028  points: 5  ended"
    assert capfd.readouterr().out.startswith(shown)


def test_what_a_comparison_of_values_refuses_is_shown(theirs, capsys):
    cli.dispatch(["compare", str(theirs), "--axis", "impl", "--baseline", "b", "--candidate", "d"])
    assert capsys.readouterr().err == f"kvexp: impl=d was not measured; there is a{SHOWN}, b, c\n"


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_an_export_is_whole_in_a_file_and_printable_on_a_terminal(theirs, tmp_path, kind):
    command = [sys.executable, "-m", "kvexp", "export", str(theirs), "--format", kind]
    piped = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    assert (LINE if kind == "csv" else r"\u001b]0;owned") in piped
    ours, theirs_end = pty.openpty()
    process = subprocess.Popen(command, stdout=theirs_end)
    os.close(theirs_end)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 1 << 16)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    assert process.wait() == 0
    assert b"\x1b" not in shown
    assert b"owned" in shown


def test_the_last_words_of_a_kernel_and_its_reason_are_printable(place, typed, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(place.folder), prepend=os.pathsep)
    (place.folder / "my_conf" / "impl" / "mine.yaml").write_text("# Mine.\n_target_: mine.Mine\n")
    (place.folder / "mine.py").write_text(
        "import os, sys\nfrom kvexp.impl.torch import Torch\nclass Mine(Torch):\n"
        "    def reshape_and_cache_flash(self, key, *_):\n"
        "        if len(key) == 3:\n            sys.stderr.write('\\x1b[2Jdying')\n"
        "            sys.stderr.flush()\n            os._exit(3)\n"
        "        raise ValueError('\\x1b[2Jfailing')\n"
    )
    done = typed("impl=mine", *TINY[1:-1], "tracking=none", "--config-dir=my_conf")
    assert done.returncode == 1
    assert is_calm(done.stdout + done.stderr)
    assert r"\x1b[2Jfailing" in done.stdout
    assert r"\x1b[2Jdying" in done.stdout


def test_a_warning_of_the_log_is_printable():
    record = logging.LogRecord("kvexp", 30, "", 0, "%s is torn", (STEERS,), None)
    assert terminal.LogFormatter().format(record) == rf"{SHOWN}\r\u2028 is torn"


@given(text=st.text())
def test_any_text_is_printable_and_printable_ones_stay(text):
    shown = terminal.make_printable(text)
    assert is_calm(shown)
    assert shown == text or not is_calm(text)
    assert terminal.make_printable(shown) == shown


HOSTILE = st.text() | st.text(alphabet="`*_[]()!<>|~\\&#-=+:/.aw1 \nhttps://www.")


@given(text=HOSTILE)
def test_markdown_shows_any_text_as_it_is(text):
    wanted = terminal.make_printable(" ".join(text.split()))
    (found,) = MARKDOWN.parseInline(render._escape_markdown(text))
    assert {token.type for token in found.children} <= {"text"}
    assert "".join(token.content for token in found.children) == wanted


@given(text=HOSTILE.filter(lambda text: text.strip() and "\n" not in text))
def test_markdown_shows_any_code_as_it_is(text):
    (found,) = MARKDOWN.parseInline(render._format_code(text))
    (code,) = found.children
    assert (code.type, code.content.strip()) == ("code_inline", terminal.make_printable(text).strip())


@pytest.mark.parametrize("address", ["https://evil.example", "www.evil.example", "ftp://evil.example"])
def test_an_address_in_a_row_is_no_address_in_the_page(address):
    assert address not in render._escape_markdown(f"see {address}/x")


def test_the_markdown_of_a_strangers_sweep_has_no_links_images_or_code_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evil = "[here](javascript:alert(1)) ![x](http://evil.example/x.png) `rm -rf ~` <b>&lt; **bold** | __x__"
    curves = [
        curve({1: 2.0, 8: 3.0}, impl=impl, op=evil, device_name=evil, host=evil, **{f"a`b {evil}": evil})
        for impl in (evil, f"# {evil}", "cuda")
    ]
    folder = sweep(tmp_path / "s" / "![a](b)", [*curves, [refused("failed", evil, impl="c")]])
    assert cli.dispatch(["report", str(folder)]) == 0
    tokens = MARKDOWN.parse((folder / "report.md").read_text("utf-8"))
    inline = [child for token in tokens for child in token.children or ()]
    assert {token.type for token in inline} <= {
        "text",
        "strong_open",
        "strong_close",
        "code_inline",
        "softbreak",
    }
    assert {token.type for token in tokens} & {"html_block", "fence", "code_block", "hr"} == set()
    shown = "".join(token.content for token in inline)
    assert shown.count(evil) > 10
