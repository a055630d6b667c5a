"""Networks of real processes, each in a network namespace, over links that lose, delay and part.

``./scripts/test network`` runs all of it; the quick suite runs ``test_short.py``.
"""
