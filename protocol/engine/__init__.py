"""The only room that sees all rooms: it dispatches inputs and returns effects.

Law: a dispatcher, never a place for rules; rules live in the rooms that it joins.
"""
