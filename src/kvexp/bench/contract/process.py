"""Answer in a process of its own: `python -m kvexp.contract.process` poses clauses until its input closes.

It speaks JSON lines. For each request, an experiment with numbers of tokens and what has died before, it
says `ask` before each question and `contract` at the end. Where nothing can be asked it says `refusal`, and
whether what was typed is wrong. Where it takes a turn at the GPU and must wait, it says `holder`. A kernel
may end it: the last `ask` says with what.
"""

import contextlib
import json
import os
import sys
from typing import IO, Any

from kvexp.case import Case
from kvexp.errors import ConfigError, KvexpError
from kvexp.experiment import Experiment
from kvexp.gpu.lock import gpu_lock
from kvexp.process import die_with_parent, frozen_imports


def serve() -> None:
    """Answer every request on the standard input."""
    die_with_parent()
    # What libraries print must not come between the lines of the protocol.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with frozen_imports():
        import torch  # noqa: F401  # what is asked imports it
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
        with gpu_lock(uuid, lambda holder: _say(out, holder=holder)):
            found = _find(out, experiment.resolve(device), request["num_tokens"], request["died"])
    except KvexpError as refusal:
        _say(out, refusal=str(refusal), typed_wrong=isinstance(refusal, ConfigError))
    except BaseException as fault:
        if not _is_of_cuda(fault):  # where a kernel has spoilt CUDA, it is to blame
            _say(out, refusal=f"{type(fault).__name__}: {fault}", typed_wrong=False)
        raise
    else:
        _say(out, contract=found)


def _find(out: IO[str], experiment: Experiment, num_tokens: list[int], died: list[list[Any]]) -> Any:
    """Return the contract as JSON.

    Raises:
        KvexpError: Nothing can be asked: the choices do not go together, or not on this device.
    """
    import torch

    from kvexp.bench import mode
    from kvexp.bench.contract.clauses import Asked, find
    from kvexp.impl import make

    case = next(experiment.cases())
    layout, op = make(experiment.layout), make(experiment.op)
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
        asked = Asked(impl, op, layout, source, case)
        before = {(clause, count) for clause, count in died}
        return find(asked, sizes, before, lambda ask: _say(out, ask=ask)).to_json()


MOST_CPU_BYTES = 32 << 20
"""Of keys and values: on a CPU clauses are posed at no larger size; each question would take seconds."""
COPIES = 12
"""How often a question holds the rows at once: inputs and cache, what is expected, and what is compared."""


def _is_of_cuda(fault: BaseException) -> bool:
    """Return whether CUDA may have raised it for what a kernel did; a lack of memory is nobody's breach."""
    import torch

    is_memory = isinstance(fault, torch.OutOfMemoryError)
    return isinstance(fault, RuntimeError) and not is_memory and torch.cuda.is_initialized()


def _fits(case: Case, num_tokens: int, item_bytes: int) -> bool:
    """Return whether the clauses are posed to a call of so many tokens."""
    rows_bytes = num_tokens * case.num_heads * (case.head_size + case.head_size_v) * item_bytes
    if case.device == "cpu":
        return rows_bytes <= MOST_CPU_BYTES
    import torch

    free: int = torch.cuda.mem_get_info(torch.device(case.device))[0]
    return COPIES * rows_bytes <= free


def _say(out: IO[str], **answer: Any) -> None:
    out.write(json.dumps(answer) + "\n")
    out.flush()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        serve()
