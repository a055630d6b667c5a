"""Prices, vouchers, chunks, receipts and their accumulator: what market and ledger must judge alike.

Law: a rule about money that two rooms apply is written here once. Nothing here keeps state; every function takes what
it judges and either returns or raises the rule that was broken.
"""
