"""Processes that are no children of this one."""

import os
import select
import time

import psutil


def find_module(parent, module, within_s=60):
    """The number of the parent's child that runs the module, which starts soon."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        for child in psutil.Process(parent).children():
            if module in child.cmdline():
                return child.pid
        time.sleep(0.01)  # who asks without a pause keeps the processor from the process that starts
    raise AssertionError(f"process {parent} starts no {module}")


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
