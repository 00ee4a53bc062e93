"""Processes that are no children of this one."""

import os
import select

import psutil


def ended(pid, within_s=120):
    """Returns when the process, no child of this one, has ended, which it must soon."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    gone = poll.poll(within_s * 1000)
    os.close(handle)
    assert gone, f"process {pid} lives on"


def list_marked(mark):
    """The processes whose environment had this MARK when they started."""
    every = psutil.process_iter(["environ"])
    return [process.pid for process in every if (process.info["environ"] or {}).get("MARK") == mark]
