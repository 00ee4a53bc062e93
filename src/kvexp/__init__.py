"""kvexp: experiments on the kernels that write keys and values into a paged KV cache.

As a library it has `kvexp.reshape_and_cache_flash` and the other functions of `kvexp.api`. They are imported
on first use, so that `import kvexp` does not import torch. `kvexp.load` reads finished sweeps into a pandas
DataFrame, also without torch.
"""

from typing import TYPE_CHECKING, Any

from kvexp.op import list_functions, list_names

__version__ = "0.1.0"

if TYPE_CHECKING:
    # Type checkers and editors read these names; nothing here uses them.
    # An op without a line here has the type Any.
    from kvexp.api import (  # noqa: F401
        KVCache,
        allocate,
        allocate_layers,
        select_layout,
        stride_order,
        verify,
    )
    from kvexp.op.concat_and_cache_mla import concat_and_cache_mla  # noqa: F401
    from kvexp.op.indexer_k_quant_and_cache import indexer_k_quant_and_cache  # noqa: F401
    from kvexp.op.reshape_and_cache import reshape_and_cache  # noqa: F401
    from kvexp.op.reshape_and_cache_flash import reshape_and_cache_flash  # noqa: F401
    from kvexp.op.reshape_and_cache_flash_diffkv import reshape_and_cache_flash_diffkv  # noqa: F401
    from kvexp.op.reshape_and_cache_flash_nvfp4 import reshape_and_cache_flash_nvfp4  # noqa: F401
    from kvexp.op.reshape_and_cache_flash_per_token_head import (  # noqa: F401
        reshape_and_cache_flash_per_token_head,
    )
    from kvexp.results.export import load  # noqa: F401

_NAMES = (
    "KVCache",
    "__version__",
    "allocate",
    "allocate_layers",
    "load",
    "select_layout",
    "stride_order",
    "verify",
)
"""The public names that are no op's."""


def __getattr__(name: str) -> Any:
    if name == "__all__":  # made when it is asked for, since it imports the ops
        return [*_NAMES, *list_functions()]
    if name not in _NAMES and not (name in list_names() and name in list_functions()):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "load":
        from kvexp.results.export import load

        return load
    from kvexp import api

    return getattr(api, name)


def __dir__() -> list[str]:
    names: list[str] = __getattr__("__all__")
    return names
