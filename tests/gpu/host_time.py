"""Measure the host's time of an eager library call, in parts: `python -m tests.gpu.host_time`.

Hosts differ, and most of a call is the driver's own time for a launch, so that is measured as well.
"""

import statistics
import sys
import time

import torch
from cuda.bindings import driver

import kvexp
from kvexp.api.launch_cache import LaunchCache
from kvexp.gpu import launch
from tests.helpers import oracle

CALLS = 400
"""Few enough that the launch queue of about 1,000 never fills."""

ROUNDS = 30


def bind_driver(posed):
    """Return the driver's launch that impl=cuda makes, with everything prepared."""
    impl = oracle.implementation("cuda", str(posed.key.device))
    num_tokens = posed.slot_mapping.shape[0]
    (x, y), cta_threads, kernel, sizes = impl.launcher(posed.op, *posed.arguments).plan(num_tokens)
    tensors = (
        posed.key,
        posed.value,
        posed.key_cache,
        posed.value_cache,
        posed.slot_mapping,
        posed.k_scale,
        posed.v_scale,
    )
    parameters = pack, pointers, _ = launch._pack_parameters(len(tensors), sizes)
    pack(*(0 if item is None else item.data_ptr() for item in tensors))
    posed.bind(impl)()
    error, function = driver.cuKernelGetFunction(driver.CUkernel(int(kernel.handle)))
    assert not error
    launch_kernel, stream = driver.cuLaunchKernel, driver.CUstream(torch.cuda.current_stream().cuda_stream)

    def call(_alive=(parameters, posed)):
        launch_kernel(function, x, y, 1, cta_threads, 1, 1, 0, stream, pointers, 0)

    return call


def rounds_us(*calls):
    """Return the microseconds of one call of each on the host, round by round.

    The calls alternate, with the GPU idle in between, so that what slows the host for a while slows all of
    them.
    """
    found = []
    for _ in range(ROUNDS):
        found.append([])
        for call in calls:
            torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(CALLS):
                call()
            found[-1].append((time.perf_counter() - begin) / CALLS * 1e6)
    return found


def medians_us(*calls):
    """Return the medians of `rounds_us`, one for each call."""
    return [statistics.median(times) for times in zip(*rounds_us(*calls), strict=True)]


def bind_look(posed):
    """Return a call that reads address, sizes, strides, dtype and device of each tensor in Python."""
    tensors = [argument for argument in posed.arguments if isinstance(argument, torch.Tensor)]

    def call():
        for tensor in tensors:
            _ = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device

    return call


def bind_both(impl, posed):
    """Return the library's call and the bound one, each made once."""
    function, arguments = getattr(kvexp, posed.op), posed.arguments
    bound = posed.bind(oracle.implementation(impl, str(posed.key.device)))

    def call():
        function(*arguments, impl=impl)

    call()
    bound()
    return call, bound


def beside_the_driver(impl, posed):
    """Return two ratios, medians over rounds, each of which compares calls of the same moment.

    The bound call's time over that of the driver's launch, and what a whole call takes more than that launch,
    over the time to read its tensors' attributes.
    """
    call, bound = bind_both(impl, posed)
    rounds = rounds_us(bind_driver(posed), call, bound, bind_look(posed))
    part = statistics.median(alone / driver for driver, _, alone, _ in rounds)
    return part, statistics.median((whole - driver) / look for driver, whole, _, look in rounds)


def measure(impl, posed):
    """Return microseconds of the driver's launch, a whole call, its launch (the bound call), and the rest."""
    call, bound = bind_both(impl, posed)
    parts = dict(
        zip(("driver_us", "call_us", "bound_us"), medians_us(bind_driver(posed), call, bound), strict=True)
    )
    closure = getattr(kvexp, posed.op).__closure__
    (cache,) = (c.cell_contents for c in closure if isinstance(c.cell_contents, LaunchCache))
    launches = [(guarded, guarded.launch) for entries in cache.values() for guarded in entries]
    try:
        for guarded, _ in launches:
            guarded.launch = lambda *_: None
        (parts["validation_us"],) = medians_us(call)
    finally:
        for guarded, launch in launches:
            guarded.launch = launch
    return parts


if __name__ == "__main__":
    for op in (oracle.FLASH, oracle.DIFFKV, oracle.PAGED):
        for impl in ("cuda", "triton"):
            posed = oracle.problem("cuda:0", oracle.shuffled(32, 128), op=op, kv_cache_dtype="fp8")
            parts = measure(impl, posed)
            sys.stdout.write(f"{op} {impl} {' '.join(f'{k}={v:.2f}' for k, v in parts.items())}\n")
