"""Benchmarks: every number is measured next to that of another server, in the same run."""
