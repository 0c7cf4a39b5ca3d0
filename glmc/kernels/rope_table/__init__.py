"""cos and sin of every token's angles; see the fusion `rope_table`."""
