"""The baseline without federation: each client trains alone, from the same start.

client i's model is W0 + s B_i A_i
"""

from fedlora import Strategy


class Local(Strategy):
    """Nothing is uploaded, so there is nothing to aggregate."""

    shared = set()
    paper = "each client alone (baseline)"
