"""cuda: CUDA C++ kernels, compiled with NVRTC for each size and launched on torch's current stream."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kvexp.errors import Unsupported
from kvexp.impl.cuda import fit
from kvexp.impl.cuda.launcher import PLANS, Gpu, Launcher
from kvexp.impl.cuda.spec import Options, Spec
from kvexp.impl.cuda.tuning import parse_options
from kvexp.op import Call


class Cuda:
    """The ops in CUDA C++; sizes are compile-time constants, one cubin each, cached on disk.

    Args:
        device: `cuda:N`.
        **options: See `spec.Options`.
    """

    name = "cuda"
    untimed = ""

    def __init__(self, device: str, **options: Any) -> None:
        self.options = parse_options(options)
        if not device.startswith("cuda"):
            none = "this machine has none" if not torch.cuda.is_available() else "device=cpu is not"
            raise Unsupported(
                f"impl=cuda needs an NVIDIA GPU and {none}; try impl=torch workload=tiny, "
                "or experiment=quickstart for what this machine can run"
            )
        try:
            import cuda.core  # noqa: F401  # if it is missing, this is a refusal, not an error
        except ImportError as error:
            raise Unsupported(
                f"impl=cuda needs the package cuda-core[cu13], which cannot be imported: {error}"
            ) from error
        self.device = torch.device(device)
        of = torch.cuda.get_device_properties(self.device)
        self.gpu = Gpu(self.device.index, f"sm_{of.major}{of.minor}", of.multi_processor_count)

    def reshape_and_cache(
        self,
        key: Tensor,
        value: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        slot_mapping: Tensor,
        kv_cache_dtype: str,
        k_scale: Tensor | None,
        v_scale: Tensor | None,
    ) -> Call:
        """Bind `op.reshape_and_cache` to these tensors."""
        tensors = (key, value, key_cache, value_cache, slot_mapping)
        return self._call("reshape_and_cache", tensors, kv_cache_dtype, k_scale, v_scale)

    def reshape_and_cache_flash(
        self,
        key: Tensor,
        value: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        slot_mapping: Tensor,
        kv_cache_dtype: str,
        k_scale: Tensor | None,
        v_scale: Tensor | None,
    ) -> Call:
        """Bind `op.reshape_and_cache_flash` to these tensors."""
        tensors = (key, value, key_cache, value_cache, slot_mapping)
        return self._call("reshape_and_cache_flash", tensors, kv_cache_dtype, k_scale, v_scale)

    def reshape_and_cache_flash_diffkv(
        self,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        slot_mapping: Tensor,
        kv_cache_dtype: str,
        k_scale: Tensor | None,
        v_scale: Tensor | None,
    ) -> Call:
        """Bind `op.reshape_and_cache_flash_diffkv` to these tensors."""
        tensors = (key, value, kv_cache, slot_mapping)
        return self._call("reshape_and_cache_flash_diffkv", tensors, kv_cache_dtype, k_scale, v_scale)

    def launcher(self, op: str, *arguments: Any) -> Launcher:
        """Return a launcher of the op for every call whose tensors agree with these.

        The calls may differ in the number of tokens and in the addresses, as long as the bitwise or of key's
        and value's ends in the same four bits, and that of the caches' too. Nothing is compiled yet.

        Args:
            op: Its name.
            *arguments: The op's own, in its order; `slot_mapping` is not read.

        Returns:
            Its `prepare(num_tokens)` gives a function of the addresses of the op's tensors, in its order, 0
            for None, which launches on torch's current stream. The tensors' device must be the current one.
        """
        return Launcher(*self._fit(op, *arguments))

    @functools.cached_property
    def _launcher(self) -> Callable[..., Launcher]:
        """Makes each launcher once: thousands of calls of a curve share it."""
        return functools.lru_cache(PLANS)(Launcher)

    def _fit(self, op: str, *arguments: Any) -> tuple[Spec, Options, int, Gpu, int | None]:
        """Return the arguments of the Launcher for such a call."""
        key, value, *caches, _, kv_cache_dtype, k_scale, _ = arguments
        items = fit.fit_items(key, kv_cache_dtype, k_scale, self.options.software_fp8)
        if op == "reshape_and_cache":
            key_cache, value_cache = caches
            num_slots = value_cache.shape[0] * value_cache.shape[3]
            spec = fit.fit_head_major(key, value, key_cache, value_cache, items)
            return spec, self.options, num_slots, self.gpu, None
        head_size, value_at = key.shape[2], None
        if op == "reshape_and_cache_flash_diffkv":
            caches = [caches[0][..., :head_size], caches[0][..., head_size:]]
            value_at = head_size * items.cache_bytes
        num_slots = caches[0].shape[0] * caches[0].shape[1]
        flash = fit.fit_flash(key, value, caches[0], caches[1], items)
        return flash, self.options, num_slots, self.gpu, value_at

    def _call(
        self, op: str, tensors: tuple[Tensor, ...], kv_cache_dtype: str, *scales: Tensor | None
    ) -> Call:
        """Bind the op to the tensors, which live as long as the call; launch nothing for no tokens."""
        num_tokens = tensors[-1].shape[0]
        if not num_tokens:
            return _do_nothing
        launch = self._launcher(*self._fit(op, *tensors, kv_cache_dtype, *scales)).prepare(num_tokens)
        alive = (*tensors, *scales)
        addresses = tuple(0 if tensor is None else tensor.data_ptr() for tensor in alive)

        def call(_alive: tuple[Tensor | None, ...] = alive) -> None:
            launch(*addresses)

        return call


def _do_nothing() -> None:
    """Do nothing, for no tokens."""
