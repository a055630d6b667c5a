"""Gossip: ids are announced, bodies pulled, over a mesh of bounded degree.

Law: nothing is relayed before its judge accepted it; before a signature has been checked only the hash of the whole
envelope is remembered, so that a broken copy never hides the true one. Every choice is drawn from a hash of (seed,
epoch, peer): the same inputs give the same effects.

Source: the mesh with lazy announcements follows the idea of Plumtree (Leitão, Pereira, Rodrigues, 2007) and gossipsub.
"""
