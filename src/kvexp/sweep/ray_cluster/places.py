"""List the GPUs, or CPUs, of a Ray cluster as places, whose processes its actors start; without Ray."""

import contextlib
import importlib.util
import json
import secrets
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from kvexp.errors import ConfigError
from kvexp.experiment import Experiment
from kvexp.host.process import END_SECONDS, LineChild
from kvexp.host.terminal import say
from kvexp.sweep import subprocess_worker
from kvexp.sweep.place import DISTURB, Place, check_workers
from kvexp.sweep.ray_cluster.connect import LOCAL, check_port
from kvexp.sweep.ray_cluster.relay import Request
from kvexp.sweep.settings import Isolation
from kvexp.sweep.subprocess_worker import LAST_WORDS_BYTES

CONNECT_SECONDS = 60.0
"""Limit for a cluster to be reached or started. Ray alone tries for two minutes."""
_ADDRESS, _WORKERS = "hydra.launcher.address", "hydra.launcher.workers"


def list_places(
    address: object,
    workers: object,
    experiments: Sequence[Experiment],
    isolation: Isolation,
    stack: ExitStack,
) -> Sequence[Place]:
    """List a place for each GPU of a cluster, or for so many workers on its CPUs.

    Args:
        address: `HOST:PORT` of the cluster's head, or `auto` for one that runs on this host; None starts a
            cluster of this host, which ends with the stack.
        workers: How many processes measure on CPUs at the same time; None for the GPUs.
        experiments: The curves.
        isolation: See `SweepSettings`.
        stack: Ends what is started here.

    Raises:
        ConfigError: An argument is something else, a curve names another device, Ray is not installed, or the
            cluster cannot be reached or lacks what is asked for.
    """
    number = _check_curves(workers, {experiment.device for experiment in experiments}, isolation)
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("hydra/launcher=ray needs Ray; pip install 'kvexp[ray]'")
    token = "" if address else secrets.token_hex()
    request: dict[str, Any] = {"address": _check_address(address), "token": token}
    if not address and number:
        request["num_cpus"] = number
    head = LineChild("kvexp.sweep.ray_cluster.head")
    stack.callback(_end, head)
    cluster = _ask(head, request)
    if address:
        _end(head)
    there = Request(
        cluster["address"],
        token,
        node="",
        num_gpus=0 if number else 1,
        num_cpus=1 if number else 0,
        module=subprocess_worker.CHILD,
        folder=str(Path.cwd()),
        last_bytes=LAST_WORDS_BYTES,
    )
    return _list_cpus(cluster, there, number) if number else _list_gpus(cluster, there)


def _check_curves(workers: object, asked: set[str], isolation: Isolation) -> int:
    """Return how many workers are asked for, 0 for the GPUs."""
    number = 0 if workers is None else check_workers(workers)
    if isolation == "inline":
        raise ConfigError(
            "isolation=inline measures in this process, and hydra/launcher=ray starts others; "
            "leave one of them out"
        )
    if number and asked != {"cpu"}:
        raise ConfigError(
            f"{_WORKERS}={workers} needs device=cpu, not device={min(asked - {'cpu'})}; "
            "without it the cluster's GPUs measure"
        )
    if not number and asked != {"auto"}:
        raise ConfigError(
            f"device={min(asked - {'auto'})} and hydra/launcher=ray both say where to measure; leave device= "
            f"out for the cluster's GPUs, or type device=cpu {_WORKERS}=2"
        )
    return number


def _check_address(address: object) -> str:
    """Return what Ray is to connect to, after a look whether anything answers there."""
    if address in (None, "auto"):
        return LOCAL if address is None else "auto"
    host, _, port = str(address).rpartition(":")
    if not (isinstance(address, str) and host and "/" not in host and port.isdecimal()):
        raise ConfigError(
            f"{_ADDRESS} must be HOST:PORT of a cluster's head, auto or null, not {address!r}; "
            "kvexp is typed on a machine of the cluster"
        )
    try:
        check_port(address)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"{_ADDRESS}={address} cannot be reached ({error})") from error
    return address


def _ask(head: LineChild, request: dict[str, Any]) -> dict[str, Any]:
    """Have the process connect, and return its answer."""
    what = "Ray could not start a cluster of this host"
    if request["address"] != LOCAL:
        what = f"{_ADDRESS}={request['address']} is no cluster that Ray can join"
    try:
        head.send(json.dumps(request))
        return head.receive(CONNECT_SECONDS)
    except TimeoutError as error:
        head.kill()  # it would read on
        raise ConfigError(f"{what} within {CONNECT_SECONDS:g} s") from error
    except (OSError, EOFError) as error:
        last_line = head.read_errors(LAST_WORDS_BYTES).rpartition("\n")[2]
        raise ConfigError(f"{what}: {last_line.partition('. ')[0]}") from error


def _end(head: LineChild) -> None:
    """End the process, and before it the cluster that it has started."""
    if head.process.stdin:
        head.process.stdin.close()
    head.wait(END_SECONDS)
    head.close()


def _list_gpus(cluster: dict[str, Any], request: Request) -> list[Place]:
    nodes = [node for node in _sort_nodes(cluster) for _ in range(node["num_gpus"])]
    if not nodes:
        raise ConfigError(
            f"hydra/launcher=ray measures on a cluster's GPUs, and that of {request.address} has none; "
            f"for its CPUs type device=cpu {_WORKERS}=2"
        )
    return _make_places(nodes, "GPU", "cuda:0", request)


def _list_cpus(cluster: dict[str, Any], request: Request, workers: int) -> list[Place]:
    """List places that take turns at the nodes, so that a host has no more of them than it must."""
    nodes = _sort_nodes(cluster)
    most = max(node["num_cpus"] for node in nodes)
    slots = [node for number in range(most) for node in nodes if number < node["num_cpus"]]
    if workers > len(slots):
        raise ConfigError(
            f"{_WORKERS}={workers} asks for a CPU each, and the cluster of {request.address} has {len(slots)}"
        )
    if workers > len(nodes):
        say(DISTURB.format(workers))
    return _make_places(slots[:workers], "worker", "cpu", request)


def _sort_nodes(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(cluster["nodes"], key=lambda node: (node["host"], node["id"]))


def _make_places(nodes: Sequence[dict[str, Any]], what: str, device: str, request: Request) -> list[Place]:
    """Make a place for each node of the list, numbered host by host."""
    numbers: Counter[str] = Counter()
    places = []
    for node in nodes:
        name = f"{node['host']} {what} {numbers[node['host']]}"
        numbers[node["host"]] += 1
        start = partial(_start_relay, replace(request, node=node["id"]))
        places.append(Place(name, device, start_child=start))
    return places


def _start_relay(request: Request) -> LineChild:
    """Start the process that behaves as the measuring process of the node does."""
    child = LineChild("kvexp.sweep.ray_cluster.relay")
    with contextlib.suppress(OSError):  # it has ended, and says why
        child.send(request.to_json())
    return child
