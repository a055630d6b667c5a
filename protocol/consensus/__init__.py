"""Agreement on one block for each height: height-closed Simplex for four to thirty known authorities.

Law: this room orders block hashes. It does not know what a transaction is, holds no clock, key or disk; what it
needs from the world goes out as data (``outputs``) and comes back as an input.

Source: Simplex consensus (Chan and Pass), closed at each height: a height is decided before the next one opens, and
views move only on certificates.
"""
