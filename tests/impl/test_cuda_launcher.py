"""What a call launches: the kernel for its number of tokens, the grid, the arguments and the stream."""

import ctypes
import threading
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from cuda.bindings import driver

from kvexp.errors import ConfigError, Unsupported
from kvexp.gpu import launch, nvrtc
from kvexp.impl.cuda import Cuda
from kvexp.impl.cuda.launcher import MOST_CTAS, MOST_THREADS, THREADS, Fitted, Gpu, Spec, compute_grid
from kvexp.impl.cuda.options import Options
from tests.helpers import oracle

OPS = [oracle.FLASH, oracle.DIFFKV, oracle.PAGED]
STREAMS = (11, 22)
HANDLES = {oracle.FLASH: 101, oracle.PAGED: 102, "read_layer": 103}
NUM_ARGUMENTS = {101: 9, 102: 10, 103: 5}


@pytest.fixture
def impl():
    """The implementation as it is made on a GPU."""
    made = object.__new__(Cuda)
    made.device, made.gpu = torch.device("cuda:3"), Gpu(3, "sm_90", 132)
    made.options = Options()
    return made


@pytest.fixture
def loaded(monkeypatch):
    """The macros of each kernel that was compiled and loaded so far."""
    seen = []

    def kernel(source, name, macros, arch):
        assert source.stem == name
        assert arch == "sm_90"
        seen.append(dict(macros))
        return SimpleNamespace(handle=HANDLES[name])

    monkeypatch.setattr(nvrtc, "load_kernel", kernel)
    monkeypatch.setattr(driver, "cuKernelGetFunction", lambda kernel: (driver.CUresult(0), int(kernel)))
    return seen


@dataclass(frozen=True)
class Launch:
    """What the driver was asked to launch; the arguments as it reads them in memory."""

    kernel: int
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    stream: int
    arguments: tuple[int, ...]


@pytest.fixture
def streams(monkeypatch):
    """torch's stream changes with each launch."""
    handles = iter(STREAMS * 10)

    def current(index):
        assert index == 3
        return next(handles)

    monkeypatch.setattr(launch, "raw_stream", current)


@pytest.fixture
def by_driver(monkeypatch, loaded, streams):
    """Each launch so far, by cuda.bindings."""
    seen = []

    def launch_kernel(function, x, y, z, width, height, depth, shared_bytes, stream, parameters, extra):
        assert (shared_bytes, extra) == (0, 0)
        pointers = ctypes.cast(parameters, ctypes.POINTER(ctypes.POINTER(ctypes.c_uint64)))
        count = NUM_ARGUMENTS[int(function)]
        arguments = tuple(pointers[i].contents.value for i in range(count))
        seen.append(Launch(int(function), (x, y, z), (width, height, depth), int(stream), arguments))
        return (driver.CUresult.CUDA_SUCCESS,)

    monkeypatch.setattr(launch, "static_launch", None)
    monkeypatch.setattr(driver, "cuLaunchKernel", launch_kernel)
    return seen


@pytest.fixture
def by_torch(monkeypatch, loaded, streams):
    """Each launch so far, by torch's static launcher."""
    seen = []

    def launch_kernel(function, x, y, z, warps, shared_bytes, types, arguments, stream):
        assert (shared_bytes, types) == (0, "K" * NUM_ARGUMENTS[function])
        seen.append(Launch(function, (x, y, z), (32 * warps, 1, 1), stream, arguments))

    monkeypatch.setattr(launch, "static_launch", launch_kernel)
    return seen


@pytest.fixture(params=["by_driver", "by_torch"])
def launched(request):
    """Each launch so far, by either of the ways."""
    return request.getfixturevalue(request.param)


def addresses(posed):
    return tuple(
        0 if item is None else item.data_ptr() for item in posed.arguments if not isinstance(item, str)
    )


def kernel_s(posed):
    """The addresses that the kernel takes: two caches, whatever the op's."""
    tensors = (posed.key, posed.value, posed.key_cache, posed.value_cache, posed.slot_mapping)
    return tuple(0 if item is None else item.data_ptr() for item in (*tensors, posed.k_scale, posed.v_scale))


@pytest.mark.parametrize("op", OPS)
class TestALauncher:
    def test_launches_what_the_bound_call_launches(self, impl, launched, op):
        posed = oracle.problem("cpu", [3, 1, 7], op=op)
        posed.bind(impl)()
        impl.launcher(op, *posed.arguments).prepare(3)(*addresses(posed))
        bound, direct = launched
        assert bound == replace(direct, stream=bound.stream)

    def test_passes_the_addresses_the_sizes_and_the_slots(self, impl, launched, op):
        posed = oracle.problem("cpu", [3, 1, 7], op=op, kv_cache_dtype="fp8_e5m2", scale="per_head")
        posed.bind(impl)()
        (found,) = launched
        sizes = {oracle.PAGED: (3, 2), oracle.FLASH: (192,), oracle.DIFFKV: (192,)}[op]  # chunks of 4 items
        assert found.kernel == HANDLES[oracle.PAGED if op == oracle.PAGED else oracle.FLASH]
        assert found.arguments == (*kernel_s(posed), *sizes, 8 * 16)
        assert found.block == (THREADS, 1, 1)

    def test_passes_no_address_for_a_scale_that_is_not_there(self, impl, launched, op):
        posed = oracle.without_scales(oracle.problem("cpu", [3], op=op))
        posed.bind(impl)()
        assert launched[0].arguments[:7] == kernel_s(posed)
        assert launched[0].arguments[5:7] == (0, 0)

    def test_asks_for_torch_s_stream_at_each_call(self, impl, launched, op):
        call = oracle.problem("cpu", [3], op=op).bind(impl)
        call()
        call()
        assert [found.stream for found in launched] == list(STREAMS)

    def test_serves_other_numbers_of_tokens_and_addresses(self, impl, launched, loaded, op):
        posed, other = (
            oracle.problem("cpu", [3], op=op),
            oracle.problem("cpu", oracle.shuffled(100, 128), op=op),
        )
        made = impl.launcher(op, *posed.arguments)
        made.prepare(1)(*addresses(posed))
        made.prepare(100)(*addresses(other))
        other.bind(impl)()
        first, second, bound = launched
        assert first.arguments[:7] == kernel_s(posed)
        assert replace(second, stream=0) == replace(bound, stream=0)
        assert loaded == [loaded[0]] * 3

    def test_plans_a_number_of_tokens_once(self, impl, launched, loaded, op):
        posed = oracle.problem("cpu", [3], op=op)
        made = impl.launcher(op, *posed.arguments)
        assert loaded == []
        for _ in range(3):
            made.prepare(1)(*addresses(posed))
        assert len(loaded) == 1
        assert len({replace(found, stream=0) for found in launched}) == 1

    def test_compiles_64_bits_for_the_calls_that_need_them_alone(self, impl, loaded, op):
        posed = oracle.problem("cpu", [3], op=op)
        made = impl.launcher(op, *posed.arguments)
        made.plan(1000)
        assert [macros["WIDE_INDEX"] for macros in loaded] == [0]
        made.plan(2**31 - 1)
        assert [macros["WIDE_INDEX"] for macros in loaded] == [0, 1]

    def test_is_not_asked_for_no_tokens(self, impl, launched, loaded, op):
        posed = oracle.problem("cpu", [], op=op)
        assert posed.bind(impl)() is None
        assert loaded == launched == []


class ReadLayer(Spec):
    """The specialisation of an op that takes three tensors and a number."""

    kernel, num_addresses, macros = "read_layer", 3, (("VEC", 8),)

    def threads(self, num_tokens):
        return 100 * num_tokens

    def sizes(self, num_tokens):
        return (num_tokens,)

    def tuned(self, options, num_tokens, sm_count):
        return self.with_ctas(options, num_tokens)


def test_an_op_has_any_tensors_and_numbers(impl, launched):
    """Its file says which; nothing else knows of it."""
    cache, rows, slots = torch.zeros(2, 4), torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)
    file = SimpleNamespace(
        fit=lambda cache, layer, rows, slots, *, options: Fitted(ReadLayer(), (layer,), len(slots))
    )
    impl.bind_file(file, cache, 5, rows, slots)()
    (found,) = launched
    assert found.arguments == (cache.data_ptr(), rows.data_ptr(), slots.data_ptr(), 3, 5)
    assert (found.grid, found.block) == ((3, 1, 1), (THREADS, 1, 1))
    assert impl.bind_file(file, cache, 5, rows, slots[:0])() is None
    assert len(launched) == 1


def test_the_flat_index_has_64_bits_only_where_32_would_wrap(impl, loaded):
    posed = oracle.problem("cpu", [5], num_heads=1, head_size=45)
    made = impl.launcher(oracle.FLASH, *posed.arguments)
    most = (MOST_THREADS - THREADS) // 45
    made.plan(most)
    made.plan(most + 1)
    assert [macros["WIDE_INDEX"] for macros in loaded] == [0, 1]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("group_tokens", 3, "a power of two from 1 to 32"),
        ("group_tokens", True, "a power of two from 1 to 32"),
        ("chunk_items", 32, "a power of two up to 16"),
        ("cta_threads", 100, "a multiple of 32 up to 1024"),
        ("cta_threads", 2048, "a multiple of 32 up to 1024"),
        ("unroll", 3, "a power of two up to 8"),
        ("slot_first", 1, "true, false or null"),
        ("exchange", 2, "true, false or null"),
    ],
)
def test_invalid_options_are_refused(name, value, words):
    with pytest.raises(ConfigError, match=f"impl.{name} must be {words}, not {value}"):
        Cuda("cuda:0", **{name: value})


def test_an_unknown_option_is_refused():
    with pytest.raises(
        ConfigError, match="impl=cuda takes no option 'group'; its options are software_fp8, "
    ):
        Cuda("cuda:0", group=3)


def test_options_reach_the_kernel_and_the_grid(impl, launched, loaded):
    impl.options = Options(cta_threads=64, slot_first=True)
    oracle.problem("cpu", oracle.shuffled(33, 128), num_heads=3, head_size=128).bind(impl)()
    (found,) = launched
    assert (found.grid[0], found.block[0]) == (-(-33 * 3 * 128 // 8 // 64), 64)
    assert (loaded[0]["THREADS"], loaded[0]["SLOT_FIRST"]) == (64, 1)


def test_the_software_conversion_is_an_option(impl, loaded):
    impl.options = Options(software_fp8=True)
    oracle.problem("cpu", [5], kv_cache_dtype="fp8_e4m3").bind(impl)
    oracle.problem("cpu", [5]).bind(impl)
    assert ["SOFTWARE_FP8" in macros for macros in loaded] == [True, False]


class TestTheGrid:
    @pytest.mark.parametrize("threads", [1, THREADS - 1, THREADS, THREADS + 1, 12345, MOST_THREADS])
    def test_rounds_up_to_whole_ctas(self, threads):
        x, y = compute_grid(threads, THREADS)
        assert y == 1
        assert 0 <= x * THREADS - threads < THREADS

    @pytest.mark.parametrize("ctas", [MOST_CTAS, MOST_CTAS + 1, 3 * MOST_CTAS - 5, 2**46 + 1])
    def test_has_rows_beyond_what_x_counts(self, ctas):
        x, y = compute_grid(ctas * THREADS, THREADS)
        assert x <= MOST_CTAS
        assert y <= 65535
        assert 0 <= x * y - ctas < y

    def test_is_what_a_call_launches(self, impl, launched):
        posed = oracle.problem("cpu", oracle.shuffled(33, 128), num_heads=3, head_size=120)
        posed.bind(impl)()
        assert launched[0].grid == (-(-33 * 3 * 120 // 8 // THREADS), 1, 1)

    @pytest.mark.parametrize(
        ("asked", "tokens", "group"), [(None, 33, 16), (1, 33, 1), (4, 33, 4), (32, 9, 16)]
    )
    def test_has_groups_of_as_many_tokens_as_are_asked_for(self, impl, launched, asked, tokens, group):
        impl.options = Options(group_tokens=asked)
        posed = oracle.problem(
            "cpu", oracle.shuffled(tokens, 128), op=oracle.PAGED, num_heads=3, head_size=128
        )
        posed.bind(impl)()
        num_tokens, shift, _ = launched[0].arguments[7:]
        assert (num_tokens, 1 << shift) == (tokens, group)
        threads = -(-tokens // group) * group * 3 * 128 // 8
        assert launched[0].grid[0] == -(-threads // THREADS)


class TestADriverThatRefuses:
    @pytest.fixture
    def errors(self, monkeypatch, by_driver):
        """Errors that the next launches end with, and the devices whose context was asked for."""
        waiting, contexts, launch_kernel = [], [], driver.cuLaunchKernel
        words = {driver.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS: b"an illegal memory access was encountered"}
        monkeypatch.setattr(
            driver, "cuLaunchKernel", lambda *given: (waiting.pop(0),) if waiting else launch_kernel(*given)
        )
        monkeypatch.setattr(driver, "cuGetErrorString", lambda error: (driver.CUresult(0), words[error]))
        monkeypatch.setattr(torch.cuda, "set_device", contexts.append)
        return waiting, contexts

    def test_is_asked_again_in_a_thread_that_had_no_context(self, impl, by_driver, errors):
        waiting, contexts = errors
        waiting += [driver.CUresult.CUDA_ERROR_INVALID_CONTEXT] * 2
        posed = oracle.problem("cpu", [3, 1, 7])
        posed.bind(impl)()
        assert contexts == [3]
        assert [found.arguments[:7] for found in by_driver] == [kernel_s(posed)]

    def test_is_quoted(self, impl, by_driver, errors):
        waiting, _ = errors
        waiting += [driver.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS] * 2
        with pytest.raises(RuntimeError, match="CUDA error: an illegal memory access was encountered"):
            oracle.problem("cpu", [3, 1, 7]).bind(impl)()
        assert by_driver == []


def test_threads_that_launch_at_once_do_not_share_arguments(impl, by_driver, monkeypatch):
    """The driver is entered without Python's lock: here the first launch waits there for a second."""
    posed, other = oracle.problem("cpu", [3, 1, 7]), oracle.problem("cpu", [3, 1, 7])
    driver_s, entered, done = driver.cuLaunchKernel, threading.Event(), threading.Event()
    monkeypatch.setattr(launch, "raw_stream", lambda index: STREAMS[0])

    def slow(*given):
        if not entered.is_set():
            entered.set()
            assert done.wait(10)
        return driver_s(*given)

    monkeypatch.setattr(driver, "cuLaunchKernel", slow)
    launched = impl.launcher(oracle.FLASH, *posed.arguments).prepare(3)
    first = threading.Thread(target=launched, args=addresses(posed))
    first.start()
    assert entered.wait(10)
    launched(*addresses(other))
    done.set()
    first.join()
    assert [found.arguments[:7] for found in by_driver] == [kernel_s(other), kernel_s(posed)]


def test_tokens_that_fill_the_gpu_three_times_are_launched_with_their_slots_first(impl, loaded):
    made = impl.launcher(oracle.FLASH, *oracle.problem("cpu", [5], num_heads=8, head_size=128).arguments)
    filled = 3 * 132 * 2048 // 128
    for num_tokens in (1, filled - 1, filled):
        made.plan(num_tokens)
    assert [macros["SLOT_FIRST"] for macros in loaded] == [0, 0, 1]


@pytest.mark.parametrize(("kv_cache_dtype", "exchange"), [("auto", 1), ("fp8", 0)])
def test_groups_that_fill_the_gpu_exchange_tokens_where_they_are_copied(
    impl, loaded, kv_cache_dtype, exchange
):
    posed = oracle.problem(
        "cpu", [5], op=oracle.PAGED, kv_cache_dtype=kv_cache_dtype, num_heads=8, head_size=128
    )
    made = impl.launcher(oracle.PAGED, *posed.arguments)
    filled = 132 * 2048 // 128
    for num_tokens in (1, filled - 16, filled):
        made.plan(num_tokens)
    assert [(macros["EXCHANGE"], macros["SLOT_FIRST"]) for macros in loaded] == [(0, 0)] * 2 + [
        (exchange,) * 2
    ]


def test_threads_take_two_pairs_where_that_spares_a_second_filling_of_the_gpu(impl, loaded):
    made = impl.launcher(oracle.FLASH, *oracle.problem("cpu", [5], num_heads=8, head_size=128).arguments)
    filled = 132 * 2048 // 128
    found = [made.plan(num_tokens) for num_tokens in (filled, filled + 1, 2 * filled, 2 * filled + 1)]
    assert [macros["UNROLL"] for macros in loaded] == [1, 2, 2, 1]
    assert found[2][0] == found[0][0]


@pytest.mark.parametrize("asked", [{"kv_cache_dtype": "fp8"}, {"kv_cache_dtype": "fp8", "op": oracle.PAGED}])
def test_threads_with_one_row_never_wait_for_their_slots(impl, loaded, asked):
    posed = oracle.problem("cpu", [5], num_heads=8, head_size=128, **asked)
    impl.launcher(posed.op, *posed.arguments).plan(2**20)
    assert [macros["SLOT_FIRST"] for macros in loaded] == [0]


@pytest.mark.parametrize("op", [oracle.FLASH, oracle.PAGED])
def test_threads_move_k_and_v_apart_where_that_is_asked_for(impl, launched, loaded, op):
    """As many chunks, each with a thread of its own."""
    posed = oracle.problem("cpu", oracle.shuffled(32, 128), op=op, num_heads=8, head_size=128)
    for paired in (True, False):
        impl.options = Options(paired=paired)
        posed.bind(impl)()
    together, apart = launched
    assert [macros["BOTH"] for macros in loaded] == [1, 0]
    assert apart.grid[0] == 2 * together.grid[0]


def test_heads_of_different_sizes_cannot_be_paired(impl):
    impl.options = Options(paired=True)
    posed = oracle.problem("cpu", [5], op=oracle.DIFFKV, head_size=192, head_size_v=128)
    with pytest.raises(Unsupported, match=r"impl\.paired=true needs heads of one size, not 192 and 128"):
        posed.bind(impl)
