import sys
from pathlib import Path

import pytest

from kvexp import sources

IMPL = Path(sources.__file__).parent / "impl"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with a kernel beside its module, and a module that is in none."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "fast.py").write_text("class Fast: pass\n")
    (folder / "fast.cu").write_text("// a kernel\n")
    (tmp_path / "alone.py").write_text("class Alone: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    sources.impl_hash.cache_clear()
    yield folder
    sources.impl_hash.cache_clear()
    for name in ("theirs", "theirs.fast", "alone"):
        sys.modules.pop(name, None)


def again(target):
    """The hash that a new process would find."""
    sources.impl_hash.cache_clear()
    return sources.impl_hash(target)


def test_a_changed_kernel_beside_the_module_is_another_implementation(package):
    before = again("theirs.fast.Fast")
    assert again("theirs.fast.Fast") == before
    (package / "notes.txt").write_text("no source")
    assert again("theirs.fast.Fast") == before
    (package / "fast.cu").write_text("// a faster kernel\n")
    assert again("theirs.fast.Fast") != before


def test_what_a_build_leaves_beside_its_sources_changes_nothing(package):
    before = again("theirs.fast.Fast")
    (package / "build").mkdir()
    for built in (package / "fast.so", package / "build" / "fast.cpython-312.so"):
        built.write_bytes(b"built")
        assert again("theirs.fast.Fast") == before


def test_a_library_that_came_without_its_sources_is_one_itself(package):
    (package / "fast.cu").unlink()
    (package / "fast.so").write_bytes(b"built elsewhere")
    before = again("theirs.fast.Fast")
    (package / "fast.so").write_bytes(b"built elsewhere, faster")
    assert again("theirs.fast.Fast") != before


def test_a_module_without_a_package_is_its_file_alone(package):
    before = again("alone.Alone")
    (package.parent / "other.py").write_text("# a neighbour\n")
    assert again("alone.Alone") == before
    (package.parent / "alone.py").write_text("class Alone: fast = True\n")
    assert again("alone.Alone") != before


def test_an_edit_after_the_import_changes_nothing_in_this_process(package):
    before = again("alone.Alone")
    (package.parent / "alone.py").write_text("class Alone: fast = True\n")
    assert sources.impl_hash("alone.Alone") == before


def test_our_implementations_differ_and_have_their_kernels_in_their_hash():
    ours = [again(f"kvexp.impl.{name}") for name in ("torch.Torch", "triton.Triton", "cuda.Cuda")]
    assert None not in ours
    assert len(set(ours)) == 3
    files = {path.suffix for path in sources._files(IMPL / "cuda")}
    assert {".py", ".cu", ".cuh"} <= files


@pytest.mark.parametrize(
    "target", ["", "Nothing", "no_such_module.Class", "theirs.missing.Class", "a..b", "json.nul\0.X"]
)
def test_what_cannot_be_found_has_no_hash(package, target):
    assert again(target) is None
