"""Packed QKV to attention inputs: split, norm, RoPE, cache write; see the fusion `split_qkv_norm_rope`."""
