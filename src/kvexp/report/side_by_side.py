"""Put the curves that several devices measured side by side, each device under its name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvexp.report.curves import Line, Machine
from kvexp.report.format import join_words
from kvexp.report.leaders import find_shared_sizes
from kvexp.report.panels import PALETTE, Panel, Series
from kvexp.report.speedups import Axis
from kvexp.results.labels import (
    CURVE,
    DEVICE,
    group_rows,
    name_curves,
    restore_auto,
    simplify_curves,
)
from kvexp.results.load import SWEEP


@dataclass(frozen=True)
class SideBySide:
    """The curves that two devices or more measured.

    Attributes:
        name: The devices, in words.
        curves: For each curve in words its line of each device.
        lines: All of these lines.
    """

    name: str
    curves: Mapping[str, Mapping[str, Line]]
    lines: tuple[Line, ...]

    @property
    def axis(self) -> Axis:
        """The devices as values that each curve was measured with."""
        return Axis(DEVICE, self.curves)

    @property
    def panels(self) -> tuple[Panel, ...]:
        """A panel for each curve, in which a device has one colour."""
        devices = self.axis.values
        return tuple(
            Panel(
                curve,
                tuple(
                    Series(device, line, (at := devices.index(device)) % len(PALETTE), at // len(PALETTE))
                    for device, line in own.items()
                ),
            )
            for curve, own in self.curves.items()
        )


def put_side_by_side(machines: Sequence[Machine]) -> SideBySide | None:
    """Put the curves of the machines side by side; None where no two measured the same size of one.

    What `auto` means on each device is no difference between them: a CPU's calls are not captured in a graph.
    Of a curve that one device measured in several sweeps the last counts.
    """
    names = _name_devices(machines)
    lines = [
        (name, restore_auto(line.points[0]) | {"device": None}, line)
        for name, machine in zip(names, machines, strict=True)
        for line in machine.ranked
    ]
    found: list[tuple[dict[str, Any], dict[str, Line]]] = []
    for own in group_rows(
        [columns | {"line": (name, line)} for name, columns, line in lines], CURVE
    ).values():
        group = dict(row["line"] for row in own)
        if find_shared_sizes(group.values()):
            found.append(({column: own[0].get(column) for column in CURVE}, group))
    if not found:
        return None
    keys = simplify_curves([key for key, _ in found])
    curves = {
        curve: {name: _rename(line, key, name) for name, line in group.items()}
        for curve, key, (_, group) in zip(name_curves([key for key, _ in found]), keys, found, strict=True)
    }
    measured = [name for name in names if any(name in own for own in curves.values())]
    return SideBySide(
        join_words(measured), curves, tuple(line for own in curves.values() for line in own.values())
    )


def _rename(line: Line, key: Mapping[str, Any], device: str) -> Line:
    """Return the line with the key that it has on no device, and that device's name."""
    return replace(line, key={column: key.get(column) for column in CURVE} | {SWEEP: None, "device": device})


def _name_devices(machines: Sequence[Machine]) -> list[str]:
    """Name each machine by its device, and two of equal devices by their hosts and drivers as well."""
    short = [machine.name.partition(",")[0] for machine in machines]
    return [
        machine.name if short.count(name) > 1 else name for name, machine in zip(short, machines, strict=True)
    ]
