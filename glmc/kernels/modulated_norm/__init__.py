"""Layer norm times a factor plus a shift, one of each a picture; see the fusion `modulated_norm`."""
