"""The ``mercat`` command: a client of the control API that starts fast."""
