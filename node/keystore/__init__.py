"""Secret keys: what a node signs with, and the encrypted files they rest in."""
