"""The sweeper and the launcher by which Hydra hands kvexp the jobs of a sweep.

Hydra loads plugins from this package alone, and each file of it anew where it was imported before.
"""
