"""Use the host: child processes, files and locks, the cache on disk, the terminal, and no secret shown there.

Imports nothing of kvexp but errors.
"""
