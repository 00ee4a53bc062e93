import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, product

import pytest

from kvexp.bench import equal_copy
from kvexp.errors import CompileError
from kvexp.gpu import nvrtc
from kvexp.host import disk_cache

SOURCE = 'extern "C" __global__ void fill(int* to) { to[threadIdx.x] = VALUE; }\n'
ARCHES = ["sm_80", "sm_89", "sm_90", "sm_100"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache" / "kvexp"
    monkeypatch.setenv("KVEXP_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "fill.cu"
    file.write_text(SOURCE)
    return file


@pytest.fixture
def compiled(monkeypatch):
    """The macros and the architecture of each compilation so far."""
    seen = []
    real = nvrtc._compile

    def compile_(text, source, macros, arch):
        seen.append((macros, arch))
        return real(text, source, macros, arch)

    monkeypatch.setattr(nvrtc, "_compile", compile_)
    return seen


@pytest.mark.parametrize("arch", ARCHES)
def test_a_source_becomes_machine_code_without_a_gpu(source, arch):
    code = nvrtc.compile_cubin(source, {"VALUE": 1}, arch)
    assert code[:4] == b"\x7fELF"
    assert b"\0.text.fill\0" in code


@pytest.mark.parametrize(("chosen", "arch"), [*zip(product([1, 4], [1, 2, 4]), cycle(ARCHES), strict=False)])
def test_the_equal_copies_compile_for_every_architecture(chosen, arch):
    unroll, reads = chosen
    macros = {"THREADS": equal_copy.THREADS, "UNROLL": unroll, "READS": reads}
    code = nvrtc.compile_cubin(equal_copy.SOURCE, macros, arch)
    assert b"\0.text.copy\0" in code
    assert b"\0.text.fold_many\0" in code
    assert b"\0.text.empty\0" in code


class TestTheCache:
    def test_gives_the_same_code_without_compiling_again(self, source, compiled):
        first = nvrtc.compile_cubin(source, {"VALUE": 1}, "sm_90")
        assert nvrtc.compile_cubin(source, {"VALUE": 1}, "sm_90") == first
        assert compiled == [([("VALUE", "1")], "sm_90")]

    def test_ignores_the_order_of_the_macros(self, source, compiled):
        nvrtc.compile_cubin(source, {"VALUE": 1, "OTHER": 2}, "sm_90")
        nvrtc.compile_cubin(source, {"OTHER": 2, "VALUE": 1}, "sm_90")
        assert len(compiled) == 1

    def test_knows_a_file_by_its_text(self, source, compiled, tmp_path):
        nvrtc.compile_cubin(source, {"VALUE": 1}, "sm_90")
        moved = tmp_path / "elsewhere" / "fill.cu"
        moved.parent.mkdir()
        moved.write_text(SOURCE)
        nvrtc.compile_cubin(moved, {"VALUE": 1}, "sm_90")
        assert len(compiled) == 1

    @pytest.mark.parametrize(
        ("macros", "arch"),
        [
            ({"VALUE": 2}, "sm_90"),
            ({"VALUE": 11}, "sm_90"),
            ({"VALUE": 1, "OTHER": 1}, "sm_90"),
            ({"VALUE": 1}, "sm_80"),
        ],
    )
    def test_tells_other_constants_and_architectures_apart(self, source, compiled, macros, arch):
        first = nvrtc.compile_cubin(source, {"VALUE": 1}, "sm_90")
        other = nvrtc.compile_cubin(source, macros, arch)
        assert len(compiled) == 2
        assert nvrtc.compile_cubin(source, {"VALUE": 1}, "sm_90") == first
        assert nvrtc.compile_cubin(source, macros, arch) == other
        assert len(compiled) == 2

    def test_builds_an_edited_source_anew(self, source, compiled):
        first = nvrtc.compile_cubin(source, {"VALUE": 1}, "sm_90")
        source.write_text(SOURCE.replace("VALUE", "VALUE + 41"))
        assert nvrtc.compile_cubin(source, {"VALUE": 1}, "sm_90") != first
        assert len(compiled) == 2

    def test_builds_anew_for_another_compiler(self, source, compiled, monkeypatch):
        nvrtc.compile_cubin(source, {"VALUE": 1}, "sm_90")
        monkeypatch.setattr(nvrtc, "_compiler_version", lambda: [99, 0])
        nvrtc.compile_cubin(source, {"VALUE": 1}, "sm_90")
        assert len(compiled) == 2

    @pytest.mark.parametrize(
        "damage",
        [
            lambda content: content[:-1],
            lambda content: content[:40],
            lambda content: content[:7],
            lambda content: b"",
            lambda content: content[:100] + bytes([content[100] ^ 1]) + content[101:],
            lambda content: bytes([content[0] ^ 1]) + content[1:],
            lambda content: content + b"\0",
        ],
        ids=["short", "cut", "cut in the digest", "empty", "a bit of the code", "of the digest", "long"],
    )
    def test_builds_a_damaged_entry_anew(self, source, compiled, cache, damage):
        first = nvrtc.compile_cubin(source, {"VALUE": 1}, "sm_90")
        (entry,) = cache.iterdir()
        whole = entry.read_bytes()
        entry.write_bytes(damage(whole))
        assert nvrtc.compile_cubin(source, {"VALUE": 1}, "sm_90") == first
        assert len(compiled) == 2
        assert entry.read_bytes() == whole

    def test_holds_nothing_but_whole_entries(self, source, cache):
        with ThreadPoolExecutor(4) as threads:
            jobs = [threads.submit(nvrtc.compile_cubin, source, {"VALUE": n % 2}, "sm_90") for n in range(8)]
        codes = [job.result() for job in jobs]
        assert len(set(codes)) == 2
        assert {file.suffix for file in cache.iterdir()} == {".cubin"}
        assert len(list(cache.iterdir())) == 2

    def test_that_cannot_be_created_only_costs_time(self, source, compiled, monkeypatch, tmp_path):
        (tmp_path / "file").write_text("no folder")
        monkeypatch.setenv("KVEXP_CACHE_DIR", str(tmp_path / "file" / "kvexp"))
        first = nvrtc.compile_cubin(source, {"VALUE": 1}, "sm_90")
        assert nvrtc.compile_cubin(source, {"VALUE": 1}, "sm_90") == first
        assert len(compiled) == 2

    def test_on_a_full_disk_leaves_nothing_behind(self, source, cache, monkeypatch):
        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
        assert nvrtc.compile_cubin(source, {"VALUE": 1}, "sm_90")[:4] == b"\x7fELF"
        assert list(cache.iterdir()) == []

    def test_is_where_the_user_s_caches_are(self, monkeypatch, tmp_path):
        monkeypatch.delenv("KVEXP_CACHE_DIR")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert disk_cache.cache_dir() == tmp_path / "kvexp"
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert disk_cache.cache_dir() == tmp_path / "home" / ".cache" / "kvexp"
        monkeypatch.setenv("KVEXP_CACHE_DIR", "~/kc")
        assert disk_cache.cache_dir() == tmp_path / "home" / "kc"


class TestASource:
    @pytest.mark.parametrize("name", ['a"b', '"', "a b", "it's", "a\\b", "grüße"])
    def test_may_lie_in_a_folder_of_any_name(self, tmp_path, name):
        (tmp_path / name).mkdir()
        source = tmp_path / name / "fill.cu"
        source.write_text('#include "number.cuh"\n' + SOURCE.replace("VALUE", "number()"))
        (tmp_path / name / "number.cuh").write_text("__device__ inline int number() { return 7; }\n")
        assert b"\0.text.fill\0" in nvrtc.compile_cubin(source, {}, "sm_90")
        source.write_text("#error here\n")
        with pytest.raises(CompileError) as raised:
            nvrtc.compile_cubin(source, {}, "sm_90")
        assert f"{source}(1): catastrophic error: #error directive: here" in str(raised.value)

    @pytest.mark.parametrize(("encoding", "utf8_mode"), [("utf-8", "0"), ("latin-1", "1")])
    def test_may_have_comments_that_are_not_ascii_under_any_locale(
        self, source, tmp_path, encoding, utf8_mode
    ):
        header = tmp_path / "number.cuh"
        source.write_bytes(('// Größe in µm\n#include "number.cuh"\n' + SOURCE).encode(encoding))
        header.write_bytes("// für VALUE\n".encode(encoding))
        script = (
            "import pathlib, sys; from kvexp.gpu import nvrtc\n"
            "print(nvrtc.compile_cubin(pathlib.Path(sys.argv[1]), {'VALUE': 1}, 'sm_90')[:4])"
        )
        environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": utf8_mode}
        command = [sys.executable, "-c", script, str(source)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("b'\\x7fELF'\n", "")


class TestAnIncludedFile:
    """One of the source's own folder; here `fill.cu` includes `value.cuh`, which includes `number.cuh`."""

    @pytest.fixture
    def number(self, source):
        source.write_text('#include "value.cuh"\n' + SOURCE.replace("VALUE", "VALUE + OF_THE_HEADER"))
        source.with_name("value.cuh").write_text('#pragma once\n  #  include "number.cuh"\n')
        file = source.with_name("number.cuh")
        file.write_text("#pragma once\nconstexpr int OF_THE_HEADER = 7;\n")
        return file

    def test_is_found_from_any_working_folder(self, source, number, tmp_path, monkeypatch):
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert b"\0.text.fill\0" in nvrtc.compile_cubin(source, {"VALUE": 1}, "sm_90")

    def test_is_part_of_the_cache_key(self, source, number, compiled):
        first = nvrtc.compile_cubin(source, {"VALUE": 1}, "sm_90")
        assert nvrtc.compile_cubin(source, {"VALUE": 1}, "sm_90") == first
        number.write_text(number.read_text().replace("7", "8"))
        assert nvrtc.compile_cubin(source, {"VALUE": 1}, "sm_90") != first
        assert len(compiled) == 2

    def test_is_known_by_its_text_too(self, source, number, compiled, tmp_path):
        nvrtc.compile_cubin(source, {"VALUE": 1}, "sm_90")
        (tmp_path / "copy").mkdir()
        for file in (source, number, number.with_name("value.cuh")):
            (tmp_path / "copy" / file.name).write_text(file.read_text())
        nvrtc.compile_cubin(tmp_path / "copy" / source.name, {"VALUE": 1}, "sm_90")
        assert len(compiled) == 1

    def test_may_be_included_by_two_that_include_one_another(self, source, number):
        number.write_text(number.read_text() + '#include "value.cuh"\n')
        assert nvrtc.compile_cubin(source, {"VALUE": 1}, "sm_90")[:4] == b"\x7fELF"

    def test_that_is_broken_is_an_error_with_its_own_name_and_line(self, source, number):
        number.write_text(number.read_text().replace("7;", "7"))
        with pytest.raises(CompileError) as raised:
            nvrtc.compile_cubin(source, {"VALUE": 1}, "sm_90")
        message = str(raised.value)
        assert message.startswith("fill.cu does not compile for sm_90: ")
        # The parser misses the semicolon at the next token, which is in the source.
        assert f'{source}(2): error: expected a ";"' in message
        number.write_text("#pragma once\n\nconstexpr int OF_THE_HEADER = seven;\n")
        with pytest.raises(CompileError) as raised:
            nvrtc.compile_cubin(source, {"VALUE": 1}, "sm_90")
        assert f'{number}(3): error: identifier "seven" is undefined' in str(raised.value)

    def test_does_not_shift_the_source_s_own_lines(self, source, number):
        with pytest.raises(CompileError) as raised:
            nvrtc.compile_cubin(source, {}, "sm_90")
        assert f'{source}(2): error: identifier "VALUE" is undefined' in str(raised.value)

    def test_that_is_missing_is_named_with_the_line_that_asks_for_it(self, source, number):
        number.unlink()
        with pytest.raises(CompileError) as raised:
            nvrtc.compile_cubin(source, {"VALUE": 1}, "sm_90")
        assert f"{number.with_name('value.cuh')}(2): " in str(raised.value)
        assert 'source file "number.cuh"' in str(raised.value)

    def test_that_was_missing_is_found_once_it_exists(self, source, number):
        text = number.read_text()
        number.unlink()
        with pytest.raises(CompileError):
            nvrtc.compile_cubin(source, {"VALUE": 1}, "sm_90")
        number.write_text(text)
        assert nvrtc.compile_cubin(source, {"VALUE": 1}, "sm_90")[:4] == b"\x7fELF"


class TestABrokenSource:
    def test_is_an_error_with_the_compiler_s_words_the_file_and_the_line(self, source):
        source.write_text("// one\n// two\n" + SOURCE.replace("VALUE;", "VALUE"))
        with pytest.raises(CompileError) as raised:
            nvrtc.compile_cubin(source, {"VALUE": 1}, "sm_90")
        message = str(raised.value)
        assert message.startswith("fill.cu does not compile for sm_90: ")
        assert f'{source}(3): error: expected a ";"' in message

    def test_leaves_no_entry(self, source, cache):
        with pytest.raises(CompileError):
            nvrtc.compile_cubin(source, {}, "sm_90")
        assert not cache.exists()

    def test_for_an_unknown_architecture_names_it(self, source):
        with pytest.raises(CompileError, match="sm_1"):
            nvrtc.compile_cubin(source, {"VALUE": 1}, "sm_1")


def test_nothing_is_warned_of_while_compiling(source):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nvrtc.compile_cubin(source, {"VALUE": 1}, "sm_90")
