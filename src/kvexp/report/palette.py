"""The colours of lines and of what surrounds them, for every figure."""

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255", "#999933")
"""Okabe and Ito's colours, which the colour-blind can tell apart; for their yellow two of Tol's."""
INK, MUTED, GRID = "#1f2328", "#6e7781", "#d9dee3"
