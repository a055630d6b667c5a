"""What nodes must agree on: pure and sans-IO.

Law: no clock, no dice, no sockets, no files, no secret keys, no floats in anything signed or hashed. Time comes in
as an argument, timers and sends go out as effects; the same inputs give the same outputs, byte for byte.
"""
