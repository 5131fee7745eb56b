"""Benchmarks: how fast the parts are, against what, and how cost grows. `python -m benchmarks --help` says how to run.

A benchmark is one function with the decorator `benchmarks.harness.benchmark`, in the file of its theme. Where it
compares two ways, both compute the same, which is asserted before anything is timed.
"""
