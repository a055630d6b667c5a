"""Tests of the store and the sign guard."""
