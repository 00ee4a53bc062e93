"""Define the exceptions that kvexp raises on purpose.

KvexpError
├── ConfigError        the command is wrong on any machine: exit code 2
├── Unsupported        this machine or combination cannot do it: a `skipped` row
├── IncorrectResult    the cache holds other bytes than the contract says: an `incorrect` row
├── CompileError       a kernel's source does not compile: a `failed` row
├── WorkerDied         the measuring process ended before its curve did: `failed` rows
├── ResultsError       rows cannot be written: the sweep stops, exit code 1
└── TrackingError      the tracking store cannot be used: a warning, the sweep goes on

Every message is one sentence that says what was asked and what is possible.
"""


class KvexpError(Exception):
    """Any error that kvexp raises on purpose."""


class ConfigError(KvexpError):
    """The configuration is wrong on any machine."""


class Unsupported(KvexpError):
    """This machine, or this combination of options, cannot do what was asked."""


class IncorrectResult(KvexpError):
    """A call wrote other bytes than its op's contract says."""


class CompileError(KvexpError):
    """A kernel's source does not compile; the message holds the compiler's log."""


class WorkerDied(KvexpError):
    """The measuring process ended before the curve did."""


class ResultsError(KvexpError):
    """Rows cannot be written to disk."""


class TrackingError(KvexpError):
    """The tracking store is unreachable or unusable.

    Attributes:
        unreachable: Whether it did not answer, so that another attempt would only cost time.
        was_dropped: Whether that was known at once, as from a busy server or a broken connection.
    """

    def __init__(self, message: str, unreachable: bool = False, was_dropped: bool = False) -> None:
        super().__init__(message)
        self.unreachable = unreachable
        self.was_dropped = was_dropped


class Terminated(KeyboardInterrupt):
    """A signal of that number asked the process to end, as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
