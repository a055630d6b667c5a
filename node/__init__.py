"""The program: transport, store, workers, the runtime that joins them, and the ``mercat`` command.

Law: a room of ``node`` holds IO and nothing that two nodes must agree on; that lives in ``protocol``.
"""
