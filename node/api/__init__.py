"""The control API: what programs of the node's own user may ask, over a unix socket."""
