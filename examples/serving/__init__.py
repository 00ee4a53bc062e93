"""Serve a model with kvexp's cache in each layout, and compare what serving takes.

The scheduler and the model are those of transformers; the cache, the kernel that writes it and the kernel
that reads it are kvexp's. `python -m examples.serving --help` says what can be typed.
"""
