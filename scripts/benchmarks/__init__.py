"""Benchmarks: what this machine does, measured on the real program. Speed lives here and in no test.

Law: every figure comes with a baseline of the same run, ratios are medians of interleaved pairs with their spread,
and everything runs on loopback, in temporary directories, in processes that end with the benchmark.
"""
