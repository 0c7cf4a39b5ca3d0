"""The op `silu_mul`."""
