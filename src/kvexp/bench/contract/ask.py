"""Ask an implementation about the contract in a process of its own, and keep the answer.

A kernel may end that process or never return. Then the clause it was asked is broken, and another process
goes on with the rest. Answers are kept beside the compiled kernels, by everything that they depend on, the
hash of the implementation's sources included, so that each combination is asked once. An answer is not kept
where the machine may be to blame: a process was late, or ended by a signal from outside, or a GPU had too
little memory.
"""

import contextlib
import json
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from kvexp.bench.contract import CLAUSES, PLAIN, Contract, Finding, answer_cache
from kvexp.errors import ConfigError, KvexpError
from kvexp.experiment import Experiment
from kvexp.gpu.lock import OnWait
from kvexp.host.process import END_SECONDS, START_SECONDS, LineChild

ASK_SECONDS = 120.0
"""Time limit of one question; a peer's first call may compile for half a minute."""
MOST_PROCESSES = 12
"""Processes for one combination; after so many deaths nothing more is asked."""
LAST_WORDS_BYTES = 300
_FAULTS = ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGTRAP", "SIGSYS")
"""Signals that a process brings on itself; another may come from anyone, as the kernel's SIGKILL does."""


class Asker:
    """Asks implementations and keeps their answers.

    Args:
        on_wait: Called with who has the GPU first: each process takes its lock, see `kvexp.gpu.lock`. None
            where this process has it.
        on_answer: Called at each answer of the process, for whoever waits for the end of all.

    Attributes:
        coming: Curves that will be asked for, resolved for this machine: one process asks all of them.
    """

    def __init__(self, on_wait: OnWait | None = None, on_answer: Callable[[], None] = lambda: None) -> None:
        self.coming: list[Experiment] = []
        self._on_wait = on_wait
        self._on_answer = on_answer
        self._ask_seconds = ASK_SECONDS
        self._known: dict[str, Contract] = {}
        self._in_doubt = False
        self._child: LineChild | None = None

    def limit(self, ask_seconds: float | None) -> None:
        """Lower the time limit of one question."""
        self._ask_seconds = ASK_SECONDS if ask_seconds is None else min(ask_seconds, ASK_SECONDS)

    def get_contract(self, experiment: Experiment, machine: Mapping[str, Any]) -> Contract:
        """Return the contract of the resolved curve's implementation; ask it where nothing is known.

        Raises:
            ConfigError: The experiment is wrong on any machine.
            KvexpError: Nothing can be asked; the message says why.
        """
        key = answer_cache.make_key(experiment, machine)
        if not self._is_known(experiment, key):
            try:
                self._remember(experiment, key, self.ask(experiment))
                for other in self.coming:
                    its_key = answer_cache.make_key(other, machine)
                    if not self._is_known(other, its_key):
                        with contextlib.suppress(KvexpError):  # raised again when its turn comes
                            self._remember(other, its_key, self.ask(other))
            finally:
                # An idle process would be counted among the other processes on the GPU.
                self.close()
        return self._known[key]

    def ask(self, experiment: Experiment) -> Contract:
        """Ask all clauses, at the curve's sizes too, whatever is known.

        Raises:
            KvexpError: See `get_contract`.
        """
        died: dict[tuple[str, int], str] = {}
        sizes = list(experiment.workload.num_tokens)
        self._in_doubt = False
        for _ in range(MOST_PROCESSES):
            last: tuple[str, int] | None = None
            fresh = self._child is None
            try:
                for answer in self._answers(experiment, sizes, list(died)):
                    self._on_answer()
                    if "holder" in answer:
                        assert self._on_wait
                        self._on_wait(answer["holder"])
                    elif "ask" in answer:
                        clause, num_tokens = answer["ask"]
                        last = clause, num_tokens
                    elif "refusal" in answer:
                        raise (ConfigError if answer["typed_wrong"] else KvexpError)(answer["refusal"])
                    else:
                        found = _add_last_words(Contract.from_json(answer["contract"]), died)
                        self._in_doubt |= _is_short_of_memory(experiment, found)
                        return found
            except _Died as death:
                self.close()
                self._in_doubt |= death.in_doubt
                if last:
                    died[last] = str(death)
                    if death.hung and last[0] == PLAIN:  # so would a larger call, for as long again
                        sizes = [size for size in sizes if size <= last[1]]
                elif fresh:  # else it may have died of an earlier curve's question
                    raise KvexpError(f"the process that asks about the contract {death}") from death
        deaths = [Finding(clause, "broken", how, size) for (clause, size), how in died.items()]
        return Contract(
            tuple(found for found in deaths if found.clause in CLAUSES),
            wrong=tuple(found for found in deaths if found.clause not in CLAUSES),
        )

    def close(self) -> None:
        """End the process, if there is one."""
        if self._child:
            self._child.close()
        self._child = None

    def _is_known(self, experiment: Experiment, key: str) -> bool:
        if key not in self._known and (found := answer_cache.read(experiment, key)):
            self._known[key] = found
        return key in self._known

    def _remember(self, experiment: Experiment, key: str, found: Contract) -> None:
        self._known[key] = found
        if not self._in_doubt:
            answer_cache.write(experiment, key, found)

    def _start(self) -> LineChild:
        try:
            return LineChild("kvexp.bench.contract.process", own_session=False)
        except OSError as error:
            raise KvexpError(
                f"the process that asks about the contract cannot be started: {error.strerror}"
            ) from error

    def _answers(
        self, experiment: Experiment, sizes: Sequence[int], died: Sequence[tuple[str, int]]
    ) -> Iterator[dict[str, Any]]:
        """Yield the answers of the process.

        Raises:
            _Died: It has ended, or was silent for too long.
        """
        limit_s = self._ask_seconds if self._child else START_SECONDS
        self._child = child = self._child or self._start()
        request = {
            "experiment": asdict(experiment),
            "num_tokens": sizes,
            "died": died,
            "takes_turn": self._on_wait is not None,
        }
        with contextlib.suppress(OSError):  # `receive` finds out how it ended
            child.send(json.dumps(request))
        while True:
            try:
                answer = child.receive(limit_s)
            except TimeoutError:
                raise _Died(f"did not return within {limit_s:g} s", in_doubt=True, hung=True) from None
            except EOFError:
                raise _explain_death(child) from None
            yield answer
            # Waiting for another process's curve is no hang, however long it takes: it is said again.
            limit_s = START_SECONDS if answer.get("holder") else self._ask_seconds


class _Died(Exception):
    """The process has ended; the message says how.

    Attributes:
        in_doubt: The implementation may have had no part in it.
        hung: It was silent for too long.
    """

    def __init__(self, how: str, in_doubt: bool, hung: bool = False) -> None:
        super().__init__(how)
        self.in_doubt = in_doubt
        self.hung = hung


def _explain_death(child: LineChild) -> _Died:
    code = child.wait(END_SECONDS) or 0
    how = f" by signal {-code}" if code < 0 else f" with exit code {code}"
    lines = child.read_errors().splitlines()
    last_words = f" ({lines[-1][:LAST_WORDS_BYTES]})" if lines else ""
    in_doubt = code < 0 and -code not in (getattr(signal, name) for name in _FAULTS)
    return _Died(f"died{how}{last_words}", in_doubt)


def _is_short_of_memory(experiment: Experiment, found: Contract) -> bool:
    """Return whether sizes are missing that a GPU may have the memory for another time."""
    tried = {*found.sizes, *(finding.num_tokens for finding in found.wrong)}
    return (
        experiment.device != "cpu" and bool(found.findings) and not tried >= {*experiment.workload.num_tokens}
    )


def _add_last_words(contract: Contract, died: Mapping[tuple[str, int], str]) -> Contract:
    """Return the contract with how each process died."""

    def add(found: Finding) -> Finding:
        how = died.get((found.clause, found.num_tokens)) if found.num_tokens is not None else None
        return replace(found, words=how) if how else found

    findings, wrong = map(add, contract.findings), map(add, contract.wrong)
    return replace(contract, findings=tuple(findings), wrong=tuple(wrong))
