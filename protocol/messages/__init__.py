"""One frozen struct for each message kind, the one table kind → type, the signed envelope, and effects.

Law: what two nodes say to each other is defined here and nowhere else. Field order is the wire order; a field is only
ever added with a new protocol version.
"""
