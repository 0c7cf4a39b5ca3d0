"""Tokens through their chosen experts; see the fusion `moe_experts`."""
