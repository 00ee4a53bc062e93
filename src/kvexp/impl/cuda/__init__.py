"""cuda: CUDA C++ kernels, compiled with NVRTC for each size and launched on torch's current stream."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kvexp.errors import Unsupported
from kvexp.impl import do_nothing, op_files
from kvexp.impl.cuda.launcher import PLANS, Gpu, Launcher
from kvexp.impl.cuda.options import parse_options
from kvexp.op import Call


@op_files(__name__, __path__)
class Cuda:
    """The ops in CUDA C++; sizes are compile-time constants, one cubin each, cached on disk.

    An op is the file of its name in this package, which `launcher` describes.

    Args:
        device: `cuda:N`.
        **options: See `options.Options`.
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

    def launcher(self, op: str, *arguments: Any) -> Launcher:
        """See `Impl`; `slot_mapping` is not read."""
        file = importlib.import_module(f"{__name__}.{op}")
        spec, sizes, _ = file.fit(*arguments, options=self.options)
        return Launcher(spec, self.options, sizes, self.gpu)

    def bind_file(self, file: Any, *arguments: Any) -> Call:
        """Bind the file's op to the tensors, which live as long as the call; launch nothing for no tokens."""
        spec, sizes, num_tokens = file.fit(*arguments, options=self.options)
        if not num_tokens:
            return do_nothing
        launch = self._launcher(spec, self.options, sizes, self.gpu).prepare(num_tokens)
        alive = tuple(one for one in arguments if one is None or isinstance(one, Tensor))
        addresses = tuple(0 if tensor is None else tensor.data_ptr() for tensor in alive)

        def call(_alive: tuple[Tensor | None, ...] = alive) -> None:
            launch(*addresses)

        return call

    @functools.cached_property
    def _launcher(self) -> Callable[..., Launcher]:
        """Makes each launcher once: thousands of calls of a curve share it."""
        return functools.lru_cache(PLANS)(Launcher)
