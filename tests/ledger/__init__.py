"""Tests of accounts, channels, blocks, the mempool and the light client."""
