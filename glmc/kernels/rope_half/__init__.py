"""The op `rope_half`."""
