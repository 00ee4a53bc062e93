"""Hold the typed parts of one curve over `num_tokens`.

An Experiment carries only names and numbers. `cli` makes it from the composed configuration, and it travels
to the measuring process as JSON. This module imports neither torch nor Hydra.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

from kvexp.case import NUM_TOKENS, Case, Sizes
from kvexp.column import columns_of

Scalar = str | int | float | bool | None

MEANING = {
    "cpu": {"device": "cpu", "mode": "no_graph", "timer": "wall_clock"},
    "cuda": {"device": "cuda:0", "mode": "cudagraph", "timer": "cuda_event"},
}
"""By kind of device: what `auto`, and `cuda` without a number, resolve to."""


@dataclass(frozen=True)
class Choice:
    """The option chosen in one Hydra group.

    Attributes:
        name: The option's name, which is its file's name in conf/.
        target: Dotted path of the class under `_target_` in the option's YAML; empty where the group has
            only data.
        options: The other keys of the YAML.
    """

    name: str
    target: str = ""
    options: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def options_json(self) -> str:
        """The options as canonical JSON: sorted keys, no spaces."""
        return json.dumps(dict(self.options), sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True, kw_only=True)
class WorkloadSpec(Sizes):
    """The sizes of one curve, the preset's name, the points in the order of measurement, a file's slots."""

    name: str
    num_tokens: Annotated[tuple[int, ...], NUM_TOKENS]
    recorded: tuple[int, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """One curve: everything but `num_tokens` is fixed."""

    op: Choice
    impl: Choice
    layout: Choice
    dtype: Choice
    kv_cache_dtype: Choice
    scale: Choice
    mode: Choice
    timer: Choice
    workload: WorkloadSpec
    device: str
    layout_reason: str = ""

    def resolve(self, device: str) -> "Experiment":
        """Return the experiment with every `auto` resolved for `device` (`cuda:N` or `cpu`)."""
        meaning = MEANING["cuda" if device.startswith("cuda") else "cpu"]
        mode, timer = self.mode, self.timer
        if mode.name == "auto":
            mode = replace(mode, name=meaning["mode"])
        if timer.name == "auto":
            timer = replace(timer, name=meaning["timer"])
        return replace(self, mode=mode, timer=timer, device=device)

    def cases(self) -> Iterator[Case]:
        """Yield the points of the curve, in order."""
        fixed: dict[str, Any] = {
            **{key: value.name for key, value in vars(self).items() if isinstance(value, Choice)},
            **{key: getattr(self.workload, key) for key in columns_of(Sizes)},
            "kv_cache_dtype": str(self.kv_cache_dtype.options.get("format", self.kv_cache_dtype.name)),
            "op_options": self.op.options_json,
            "impl_options": self.impl.options_json,
            "timer_options": self.timer.options_json,
            "device": self.device,
            "layout_reason": self.layout_reason,
            "workload": self.workload.name,
        }
        for num_tokens in self.workload.num_tokens:
            yield Case(num_tokens=num_tokens, recorded=self.workload.recorded, **fixed)

    def to_json(self) -> str:
        """Return the experiment as one line of JSON, for `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Experiment":
        """Read the JSON of `to_json`."""
        fields: dict[str, Any] = json.loads(text)
        workload = fields.pop("workload")
        workload |= {key: tuple(workload[key]) for key in ("num_tokens", "recorded")}
        made: dict[str, Any] = {k: Choice(**v) if isinstance(v, dict) else v for k, v in fields.items()}
        return cls(**made, workload=WorkloadSpec(**workload))
