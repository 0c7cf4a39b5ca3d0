"""RoPE on the first 2n channels of each head, in halves or in pairs; see the fusion `rope`."""
