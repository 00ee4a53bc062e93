"""Keep rows on disk and read them: load, merge, compare, export, baselines, the state of a sweep.

May import kvexp's top-level modules, and of bench what imports no torch.
"""
