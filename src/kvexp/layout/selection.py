"""Select the layout that a serving engine would take: `layout=auto`.

In order: `KVEXP_KV_CACHE_LAYOUT`, `VLLM_KV_CACHE_LAYOUT`, `FLASHINFER_KV_CACHE_LAYOUT`, what the KV-transfer
connector asks for, NHD. Source: vLLM's pull request 19280 and what became of it (docs/semantics.md).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kvexp.errors import ConfigError
from kvexp.layout import load_layouts

OURS = "KVEXP_KV_CACHE_LAYOUT"
VLLMS = "VLLM_KV_CACHE_LAYOUT"
FLASHINFERS = "FLASHINFER_KV_CACHE_LAYOUT"
DEFAULT = "NHD"

ALIASES = {"LBNHC": "NHD_packed", "LBHNC": "HND_packed", "BLNHC": "NHD_packed", "BLHNC": "HND_packed"}
"""Later names of vLLM's for layouts that have other names here.

A name gives the outermost dim first: layer, block, slot (N), head, content. Where B comes before L the layers
share each block, as with `workload.num_layers` above 1. BHLNC and LHBNC are layouts of their own.
"""


class Selection(NamedTuple):
    """A layout and why it was taken."""

    layout: str
    reason: str


def list_variables() -> dict[str, tuple[str, ...]]:
    """Return the variables in order of precedence, with the names that each takes.

    `FLASHINFER_KV_CACHE_LAYOUT` is the name that pull request 19280 began with; vLLM has replaced it since.
    FlashInfer itself knows only NHD and HND, so the variable takes no others.
    """
    return {
        OURS: tuple(load_layouts()),
        VLLMS: ("NHD", "HND", *ALIASES, "BHLNC", "LHBNC"),
        FLASHINFERS: ("NHD", "HND"),
    }


def select(
    op: str,
    environ: Mapping[str, str],
    connector: str = "connector=none",
    wish: str | None = None,
    twins: Mapping[str, str] | None = None,
) -> Selection:
    """Return the layout that `auto` means for the op that will write the cache.

    Args:
        op: Its name.
        environ: The environment.
        connector: The KV-transfer connector, as the reason names it.
        wish: The layout that it asks for; None where it asks for none.
        twins: The op's; see `kvexp.op.Op`.

    Raises:
        ConfigError: A variable names an unknown layout; the message lists the known ones.
    """
    found = _find(environ, connector, wish)
    written = (twins or {}).get(found.layout, found.layout)
    if written == found.layout:
        return found
    return Selection(written, f"{found.reason}; {written} is what {op} writes for {found.layout}")


def _find(environ: Mapping[str, str], connector: str, wish: str | None) -> Selection:
    for variable, valid in list_variables().items():
        if value := environ.get(variable):
            return Selection(_resolve(variable, value, valid), f"{variable}={value}")
    if wish is not None:
        return Selection(wish, f"{connector} asks for {wish}")
    return Selection(DEFAULT, f"no variable names a layout and {connector} asks for none")


def _resolve(variable: str, value: str, valid: Sequence[str]) -> str:
    if value in valid:
        return ALIASES.get(value, value)
    raise ConfigError(f"{variable}={value} is not a layout; it can be {', '.join(valid)}")
