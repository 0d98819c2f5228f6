"""Benchmarks of hypodask: ``asv run --quick``. What a figure was measured on is said in its class."""
