"""Which layout a serving engine would take: `layout=auto`.

In order: `KVEXP_KV_CACHE_LAYOUT`, `VLLM_KV_CACHE_LAYOUT`, `FLASHINFER_KV_CACHE_LAYOUT`, what the KV-transfer
connector asks for, NHD. Source: vLLM's pull request 19280 and what became of it (docs/semantics.md).
"""

from collections.abc import Mapping
from typing import NamedTuple

from kvexp.errors import ConfigError

OURS = "KVEXP_KV_CACHE_LAYOUT"
VLLMS = "VLLM_KV_CACHE_LAYOUT"
FLASHINFERS = "FLASHINFER_KV_CACHE_LAYOUT"
DEFAULT = "NHD"

NAMES = ("NHD", "HND", "NHD_packed", "HND_packed", "BHLNC", "LHBNC", "head_major")

ALIASES = {"LBNHC": "NHD_packed", "LBHNC": "HND_packed", "BLNHC": "NHD_packed", "BLHNC": "HND_packed"}
"""Those of vLLM's later names whose layouts have other names here.

A name gives the outermost dim first: layer, block, slot (N), head, content. Where B comes before L the layers
share each block, which `workload.num_layers` says here. BHLNC and LHBNC are layouts of their own.
"""

VALID = {OURS: NAMES, VLLMS: ("NHD", "HND", *ALIASES, "BHLNC", "LHBNC"), FLASHINFERS: ("NHD", "HND")}
"""The variables in the order in which they are asked, with the names that each takes.

`FLASHINFER_KV_CACHE_LAYOUT` is the name that pull request 19280 began with; vLLM has replaced it since. It is
older than vLLM's other names, and FlashInfer itself knows NHD and HND alone, so it takes no others.
"""

TWINS = {
    "reshape_and_cache": dict.fromkeys(NAMES, "head_major"),
    "reshape_and_cache_flash_diffkv": {"NHD": "NHD_packed", "HND": "HND_packed"},
}
"""What an op that does not write the layout itself writes instead."""


class Selection(NamedTuple):
    """A layout and why it was taken."""

    layout: str
    reason: str


def select(
    op: str, environ: Mapping[str, str], connector: str = "connector=none", wish: str | None = None
) -> Selection:
    """The layout that `auto` means.

    Args:
        op: The op that will write the cache.
        environ: The environment.
        connector: The KV-transfer connector as the reason is to name it.
        wish: The layout that it asks for; None where it asks for none.

    Raises:
        ConfigError: A variable names a layout that is not there; the message lists those that are.
    """
    found = _found(environ, connector, wish)
    written = TWINS.get(op, {}).get(found.layout, found.layout)
    if written == found.layout:
        return found
    return Selection(written, f"{found.reason}; {written} is what {op} writes for {found.layout}")


def _found(environ: Mapping[str, str], connector: str, wish: str | None) -> Selection:
    for variable in VALID:
        if value := environ.get(variable):
            return Selection(_named(variable, value), f"{variable}={value}")
    if wish is not None:
        return Selection(wish, f"{connector} asks for {wish}")
    return Selection(DEFAULT, f"no variable names a layout and {connector} asks for none")


def _named(variable: str, value: str) -> str:
    valid = VALID[variable]
    if value in valid:
        return ALIASES.get(value, value)
    raise ConfigError(f"{variable}={value} is not a layout; it can be {', '.join(valid)}")
