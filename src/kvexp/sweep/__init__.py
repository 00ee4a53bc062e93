"""Run a whole sweep in the parent process: plan, workers, rows, progress, summary.

Imports every room below but cli, and no torch.
"""
