"""Hostile bytes: a table of targets, tried by hypothesis in the quick suite and by a coverage-guided fuzzer at length.

Law: any bytes give a message or the error that names whose fault it was; nothing else, whatever the bytes.
"""
