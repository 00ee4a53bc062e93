import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

from kvexp.bench import impl_hash

IMPL = Path(impl_hash.__file__).parents[1] / "impl"


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
    impl_hash.hash_impl.cache_clear()
    yield folder
    impl_hash.hash_impl.cache_clear()
    for name in ("theirs", "theirs.fast", "alone"):
        sys.modules.pop(name, None)


def again(target):
    """The hash that a new process would find."""
    impl_hash.hash_impl.cache_clear()
    return impl_hash.hash_impl(target)


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
    assert impl_hash.hash_impl("alone.Alone") == before


def test_our_implementations_differ_and_have_their_kernels_in_their_hash():
    ours = [again(f"kvexp.impl.{name}") for name in ("torch.Torch", "triton.Triton", "cuda.Cuda")]
    assert None not in ours
    assert len(set(ours)) == 3
    files = set(impl_hash._files(IMPL / "cuda"))
    assert {path for path in (IMPL / "cuda").iterdir() if path.is_file()} == files
    assert {".py", ".cu", ".cuh"} == {path.suffix for path in files}


@pytest.mark.parametrize(
    "target", ["", "Nothing", "no_such_module.Class", "theirs.missing.Class", "a..b", "json.nul\0.X"]
)
def test_what_cannot_be_found_has_no_hash(package, target):
    assert again(target) is None


ROOT = Path(__file__).resolve().parents[2]


def copied(to, conf):
    """`kvexp.bench.impl_hash` of a copy whose YAML files lie in the folder `conf`, seen from the copy's."""
    package = to / "src" / "kvexp"
    shutil.copytree(ROOT / "src" / "kvexp", package)
    shutil.copytree(ROOT / "conf", to / conf)
    spec = importlib.util.spec_from_file_location("copied_sources", package / "bench" / "impl_hash.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("conf", ["conf", "src/kvexp/conf"], ids=["a checkout", "a wheel"])
def test_all_of_kvexp_has_one_hash_wherever_it_lies(tmp_path, conf):
    copy = copied(tmp_path, conf)
    compiled = tmp_path / "src" / "kvexp" / "__pycache__"
    compiled.mkdir(exist_ok=True)
    (compiled / "new.cpython-399.pyc").write_bytes(b"compiled")
    (tmp_path / conf / "notes.txt").write_text("no option")
    assert copy.source_hash() == impl_hash.source_hash()
    assert len(copy.source_hash()) == 16


@pytest.mark.parametrize(
    "file",
    [
        "src/kvexp/results/verdict.py",
        "src/kvexp/impl/cuda/convert.cuh",
        "src/kvexp/bench/equal_copy.cu",
        "src/kvexp/report/templates/report.html.j2",
        "conf/workload/seed.yaml",
        "conf/workload/new.yaml",
        "src/kvexp/impl/new.py",
    ],
)
def test_whatever_can_change_what_is_measured_changes_the_hash_of_kvexp(tmp_path, file):
    copy = copied(tmp_path, "conf")
    with (tmp_path / file).open("a") as handle:
        handle.write("\n")
    assert copy.source_hash() != impl_hash.source_hash()


def test_a_file_under_another_name_changes_the_hash_of_kvexp(tmp_path):
    copy = copied(tmp_path, "conf")
    (tmp_path / "conf" / "mode" / "auto.yaml").rename(tmp_path / "conf" / "mode" / "other.yaml")
    assert copy.source_hash() != impl_hash.source_hash()


def test_every_file_of_kvexp_is_in_its_hash():
    files = [
        file for folder in ("src/kvexp", "conf") for file in (ROOT / folder).rglob("*") if file.is_file()
    ]
    left_out = [file for file in files if file.suffix not in impl_hash.SHIPPED]
    assert {file.parent.name for file in left_out} <= {"__pycache__"}


def test_sources_that_cannot_be_read_have_no_hash(tmp_path):
    copy = copied(tmp_path, "conf")
    (tmp_path / "conf" / "gone.yaml").symlink_to(tmp_path / "nowhere")
    assert copy.source_hash() is None
