"""The experts and weights of each token; see the fusion `moe_route`."""
