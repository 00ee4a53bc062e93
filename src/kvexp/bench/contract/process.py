"""Pose clauses in a process of its own: `python -m kvexp.bench.contract.process` runs until its input closes.

It speaks JSON lines. A request is an experiment with numbers of tokens and the questions that have ended a
process before. It says `ask` before each question and `contract` at the end. Where nothing can be asked it
says `refusal`, and whether what was typed is wrong. While it waits for its turn at the GPU it says `holder`.
A kernel may end the process: the last `ask` names the question.
"""

import contextlib
import json
import os
import sys
from dataclasses import asdict
from typing import IO, Any

from kvexp.bench.describe_error import describe_error
from kvexp.case import Case
from kvexp.errors import ConfigError, KvexpError, Unsupported
from kvexp.experiment import Experiment
from kvexp.gpu.lock import gpu_lock
from kvexp.host.process import frozen_imports, send_answer, start_serving


def serve() -> None:
    """Answer every request on the standard input."""
    out = start_serving()
    with frozen_imports():
        import torch  # noqa: F401  # later imports of it are free
    for line in sys.stdin:
        _answer(out, json.loads(line))


def _answer(out: IO[str], request: dict[str, Any]) -> None:
    from kvexp.bench import environment

    experiment = Experiment.from_json(json.dumps(request["experiment"]))
    try:
        device = environment.resolve_device(experiment.device)
        if device == "cpu":
            # Before any kernel's module is imported: Triton reads it when it decorates.
            os.environ["TRITON_INTERPRET"] = "1"
        uuid = environment.read(device)["device_uuid"] if request["takes_turn"] else None
        with gpu_lock(uuid, lambda holder: send_answer(out, holder=holder)):
            found = _pose(out, experiment.resolve(device), request["num_tokens"], request["died"])
    except KvexpError as refusal:
        send_answer(out, refusal=str(refusal), typed_wrong=isinstance(refusal, ConfigError))
    except BaseException as fault:
        if not _is_of_cuda(fault):  # else the kernel that broke CUDA is to blame
            send_answer(out, refusal=describe_error(fault, experiment.impl.target), typed_wrong=False)
        raise
    else:
        send_answer(out, contract=found)


def _pose(out: IO[str], experiment: Experiment, num_tokens: list[int], died: list[list[Any]]) -> Any:
    """Pose the clauses and return the contract as JSON.

    Raises:
        KvexpError: Nothing can be asked: the choices do not go together, or not on this device.
    """
    import torch

    from kvexp.bench import mode
    from kvexp.bench.contract.clauses import Subject, pose_clauses
    from kvexp.impl import make

    case = next(experiment.cases())
    layout, op = make(experiment.layout), make(experiment.op)
    if not op.poses_clauses:
        raise Unsupported(f"op={op.name} has no clauses; each of its points is verified when it is measured")
    source: torch.dtype = getattr(torch, str(experiment.dtype.options["torch_dtype"]))
    op.check(case, layout, source.itemsize)
    mode.check_mode(case.mode, case.device)
    impl = make(experiment.impl, device=case.device)
    with contextlib.ExitStack() as stack:
        if case.device != "cpu":
            device = torch.device(case.device)
            stack.enter_context(torch.cuda.device(device))
            stack.enter_context(torch.cuda.stream(torch.cuda.Stream(device)))
        # What is not timed here, such as interpreted Triton, would take minutes at a curve's own sizes.
        own = [] if impl.untimed else num_tokens
        sizes = [count for count in own if _fits(case, count, source.itemsize)]
        subject = Subject(impl, op, layout, source, case)
        before = {(clause, count) for clause, count in died}
        return asdict(pose_clauses(subject, sizes, before, lambda ask: send_answer(out, ask=ask)))


MOST_CPU_BYTES = 32 << 20
"""Most bytes of keys and values at which clauses are posed on a CPU; beyond, each question takes seconds."""
COPIES = 12
"""Copies of the rows that a question holds at once: inputs, cache, expected bytes and comparisons."""


def _is_of_cuda(fault: BaseException) -> bool:
    """Return whether CUDA may have raised it because of a kernel; a lack of memory is no breach."""
    import torch

    is_memory = isinstance(fault, torch.OutOfMemoryError)
    return isinstance(fault, RuntimeError) and not is_memory and torch.cuda.is_initialized()


def _fits(case: Case, num_tokens: int, item_bytes: int) -> bool:
    """Return whether clauses are posed in calls of so many tokens."""
    rows_bytes = num_tokens * case.num_heads * (case.head_size + case.head_size_v) * item_bytes
    if case.device == "cpu":
        return rows_bytes <= MOST_CPU_BYTES
    import torch

    free: int = torch.cuda.mem_get_info(torch.device(case.device))[0]
    return COPIES * rows_bytes <= free


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        serve()
