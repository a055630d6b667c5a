"""What a node keeps on disk: blocks, state, journals in one SQLite file, and the sign guard in a file of its own.

Law: what ``commit`` or ``reserve`` has returned from survives any crash; what it has not returned from is there whole
or not at all.
"""
