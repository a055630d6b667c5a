"""The typed configuration of one process, and the genesis file of its network."""
