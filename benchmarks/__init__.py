"""Benchmarks of speed, memory and scaling. For usage see `python -m benchmarks --help`.

A benchmark is one function with the decorator `benchmarks.harness.benchmark`, in the file of its theme. A benchmark
that compares two implementations first asserts that their results agree.
"""
