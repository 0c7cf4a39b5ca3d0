"""The op `rope_pairs`."""
