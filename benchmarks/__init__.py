"""Benchmarks of hypodask.

What ``asv run --quick`` times lies in this folder. Each class says what it measures and on which data. Programs that
measure accuracy on real data, or speed on many machines, are in ``benchmarks/validation/``; asv does not import them.
"""
