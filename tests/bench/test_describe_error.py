"""An error says where the user's own code was left, and nothing of where kvexp's or a library's was."""

import importlib
import sys

import pytest
import torch

from kvexp.bench.describe_error import describe_error

BY_ZERO = "ZeroDivisionError: division by zero"
CASES = {
    "its own line": (
        {"own_a.py": "def run():\n    return kee\n"},
        "NameError: name 'kee' is not defined at own_a.py:2, in run",
    ),
    "a file beside it": (
        {"own_a.py": "import own_b\n\ndef run():\n    own_b.go()\n", "own_b.py": "def go():\n    1 / 0\n"},
        f"{BY_ZERO} at own_b.py:2, in go",
    ),
    "a package": (
        {"own_a/__init__.py": "from .k import run\n", "own_a/k.py": "def run():\n    1 / 0\n"},
        f"{BY_ZERO} at k.py:2, in run",
    ),
    "a message of several lines": (
        {"own_a.py": "def run():\n    raise ValueError('one\\ntwo')\n"},
        "ValueError: one\ntwo\nat own_a.py:2, in run",
    ),
    "Python's library": (
        {"own_a.py": "import fractions\n\n\ndef run():\n    fractions.Fraction('a')\n"},
        "ValueError: Invalid literal for Fraction: 'a' at own_a.py:5, in run",
    ),
    "torch": (
        {"own_a.py": "import torch\n\ndef run():\n    torch.zeros(2).view(3)\n"},
        "RuntimeError: shape '[3]' is invalid for input of size 2 at own_a.py:4, in run",
    ),
    "an import": (
        {"own_a.py": "import not_there\n"},
        "ModuleNotFoundError: No module named 'not_there' at own_a.py:1, in <module>",
    ),
    "an error of an error": (
        {"own_a.py": "def run():\n try:\n  1 / 0\n except Exception as e:\n  raise KeyError('k') from e\n"},
        "KeyError: 'k' at own_a.py:5, in run",
    ),
    "a library that lies below": (
        {
            "own_a.py": "import sys\nsys.path.append(__file__[:-8] + '.venv/site-packages')\n"
            "import own_lib\ndef run():\n    own_lib.go()\n",
            ".venv/site-packages/own_lib.py": "def go():\n    1 / 0\n",
        },
        f"{BY_ZERO} at own_a.py:5, in run",
    ),
}


@pytest.fixture
def raised(tmp_path, monkeypatch):
    """Runs what files of the user's define as `own_a.run`, and gives what it raised."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before = set(sys.modules)

    def run(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        importlib.invalidate_caches()
        with pytest.raises(Exception) as caught:  # noqa: PT011  # whatever it is
            importlib.import_module("own_a").run()
        return caught.value

    yield run
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]


@pytest.mark.parametrize("case", CASES)
def test_the_last_line_of_the_users_own_code_ends_the_description(raised, case):
    files, said = CASES[case]
    assert describe_error(raised(files), "own_a.Class") == said


@pytest.mark.parametrize(
    "target", ["kvexp.impl.torch.Torch", "not.there.Class", "", "torch.nn.Linear", "..x"]
)
def test_an_error_of_others_code_is_its_message(target):
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(2).view(3)
    said = "RuntimeError: shape '[3]' is invalid for input of size 2"
    assert describe_error(caught.value, target) == said
