"""The op `qk_norm_rope`."""
