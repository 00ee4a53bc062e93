"""What the system refuses to a process, for real."""

import ctypes
import resource
import signal

PR_CAPBSET_DROP = 24
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
"""From linux/prctl.h and linux/capability.h."""


def obey_permissions():
    """Even root is bound by a file's permissions after its next exec."""
    libc = ctypes.CDLL(None)
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def small_files(most_bytes):
    """A function that lets no file of its process grow beyond that: the write that does is cut short."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    return limit
