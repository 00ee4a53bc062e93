"""Processes that are no children of this one."""

import os
import select


def ended(pid):
    """Returns when the process, no child of this one, has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    gone = poll.poll(120_000)
    os.close(handle)
    assert gone, f"process {pid} lives on"
