"""Pass lines on between the parent and the measuring process of another node, by an actor of Ray.

`python -m kvexp.sweep.ray_cluster.relay` is sent a `Request` as a line of JSON. From then on it behaves as
that measuring process does: its answers, its last words and the way it ends are that one's. Where the actor
is lost, its last words are Ray's. The actor ends with it.
"""

import contextlib
import faulthandler
import json
import os
import resource
import signal
import sys
import threading
from dataclasses import asdict, dataclass
from typing import IO, Any

from kvexp.host.process import send_answer, start_serving
from kvexp.sweep.ray_cluster.actor import Actor, Ended
from kvexp.sweep.ray_cluster.connect import check_port, connect

MOST_CHARACTERS = 500
"""Of Ray's reasons; its longest end in advice of several lines."""
_CALLS = 4
"""Calls that an actor takes at the same time: it receives for as long as a point takes."""


@dataclass(frozen=True)
class Request:
    """Say what is to be started, and where.

    Attributes:
        address: The cluster's.
        token: See `connect`.
        node: The node's id; elsewhere the actor is not started.
        num_gpus: How many GPUs the process has to itself, and is the only one to see.
        num_cpus: As Ray counts them.
        module: The measuring process's.
        folder: Where kvexp was typed.
        last_bytes: How much of the process's stderr is passed on.
    """

    address: str
    token: str
    node: str
    num_gpus: int
    num_cpus: int
    module: str
    folder: str
    last_bytes: int

    def to_json(self) -> str:
        """Return it as a line."""
        return json.dumps(asdict(self))


def serve() -> None:
    """Start the actor, and pass lines on until one of the two processes ends."""
    out = start_serving()
    faulthandler.unregister(signal.SIGUSR1)
    # Ray's threads inherit it, so that the signal waits for the one that asks the actor.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    request = Request(**json.loads(sys.stdin.readline()))
    with _ending_with_the_reason():
        check_port(request.address)  # the head may be lost by now
        connect(request.address, request.token)
        actor = _start_actor(request)
        for work in (_send_lines, _dump_on_signal):
            threading.Thread(target=_work, args=(work, actor), daemon=True).start()
        _receive_answers(actor, out)


def _start_actor(request: Request) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Nothing is measured twice: an actor that is lost stays so.
    options = ray.remote(Actor).options(
        num_gpus=request.num_gpus,
        num_cpus=request.num_cpus,
        max_restarts=0,
        max_task_retries=0,
        max_concurrency=_CALLS,
        scheduling_strategy=NodeAffinitySchedulingStrategy(request.node, soft=False),
    )
    return options.remote(request.module, request.folder, request.last_bytes)


def _work(work: Any, actor: Any) -> None:
    with _ending_with_the_reason():
        work(actor)


def _send_lines(actor: Any) -> None:
    import ray

    for line in sys.stdin:
        ray.get(actor.send.remote(line.rstrip("\n")))
    os._exit(0)  # the parent is gone


def _dump_on_signal(actor: Any) -> None:
    import ray

    signal.sigwait([signal.SIGUSR1])
    words = ray.get(actor.dump.remote())
    _end(Ended(-signal.SIGUSR1, words))


def _receive_answers(actor: Any, out: IO[str]) -> None:
    import ray

    while not isinstance(answer := ray.get(actor.receive.remote()), Ended):
        send_answer(out, **answer)
    _end(answer)


def _end(end: Ended) -> None:
    """End as the measuring process did."""
    print(end.words, file=sys.stderr, flush=True)  # noqa: T201  # the last words
    if end.code is not None and end.code < 0:
        faulthandler.disable()  # where this process is tells nothing
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError, ValueError):  # those of SIGKILL cannot be set
            signal.signal(-end.code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [-end.code])
        os.kill(os.getpid(), -end.code)
    os._exit(1 if end.code is None else end.code)


@contextlib.contextmanager
def _ending_with_the_reason() -> Any:
    """End the process with what Ray says as its last words, where it raises."""
    try:
        yield
    except BrokenPipeError:
        os._exit(0)  # the parent is gone
    except Exception as error:  # noqa: BLE001  # the parent puts it into rows
        print(_shorten(str(error)), file=sys.stderr, flush=True)  # noqa: T201  # the last words
        os._exit(1)


def _shorten(reason: str) -> str:
    """Return Ray's reason in one line, without the fields of the actor and the advice."""
    lines = [line for line in reason.splitlines() if line and not line.startswith("\t")]
    return " ".join(lines).partition(" Some common causes")[0][:MOST_CHARACTERS]


if __name__ == "__main__":
    serve()
