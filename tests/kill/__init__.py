"""SIGKILL at random points of real processes: nothing acknowledged is lost, nothing happens twice.

``./scripts/test kill [--points N]`` runs as many points as wanted (``__main__.py``); the quick suite runs a few.
"""
