"""Measure one curve: set up, ask about the contract, verify, time, and time an equal copy.

Runs in the measuring process. Imports impl, workload, timer, op, layout, gpu and the helpers.
"""
