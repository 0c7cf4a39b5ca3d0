"""Layer norm, with weight and bias or without; see the fusion `layer_norm`."""
