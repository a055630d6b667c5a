"""Links between real nodes on loopback."""
