"""Keep rows on disk, and read out of them: load, compare, export, baselines, the state of a sweep.

Imports the vocabulary and the helpers at the top of kvexp alone, and no torch.
"""
