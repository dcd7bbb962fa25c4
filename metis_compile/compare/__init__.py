"""Policies compared by training: several of them, from the same seeds, on the same data.

``arm`` is one way to train, ``record`` what one arm gave from one seed, ``trial`` makes it, ``comparison`` runs
the trials that are missing, ``cost`` measures what an arm costs, ``summary`` and ``plot`` show it all. ``gemm``
compares single products in place of runs.
"""
