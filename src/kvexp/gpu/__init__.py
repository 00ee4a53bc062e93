"""Use an NVIDIA GPU: compile with NVRTC, launch, read NVML and CUPTI, lock it, scan its memory.

Imports nothing of kvexp but errors and host.
"""
