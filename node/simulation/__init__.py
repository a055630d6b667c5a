"""A whole network in one process, from a seed: virtual clock, seeded network, faults on purpose, checkers.

Law: the nodes run the same rooms as a real node; only time, network, disk and dice are ours. One seed gives one run:
the same events in the same order, and the same trace hash.
"""
