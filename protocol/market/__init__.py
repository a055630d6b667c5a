"""Offers, quotes, agreements, and the two sides of a job: the buyer's and the seller's state machines.

Law: each side is a pure step ``(state, input, now) → effects``. What the ledger knows comes in through
``LedgerView``; what the market wants from the ledger goes out as ``WantTransaction``. No money moves here that is not
durable first: every voucher is put before it is sent or relied on.
"""
