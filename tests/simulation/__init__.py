"""Tests that run whole networks in one process."""
