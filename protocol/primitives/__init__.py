"""Units, hashing, signature checks, the one codec, every cap, and the roots of all errors.

Law: this room imports nothing else of ours; every other room of ``protocol`` may import it.
"""
