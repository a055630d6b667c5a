"""Accounts, bonds and channels; blocks and what they do to them; the mempool; the light client.

Law: every rule about money is here, and nowhere is money made or lost: supply = balances + deposits + bonds + fees.
"""
