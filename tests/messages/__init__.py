"""The bytes: golden vectors, second spellings, addresses, amounts."""
