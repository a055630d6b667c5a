"""The running node: turns effects into IO and IO into inputs, and owns every task.

Law: rules live in ``protocol``; here is only when and where they are carried out.
"""
