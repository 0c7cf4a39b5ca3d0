"""Latent attention (MLA): the compressed cache is read as it is, or opened first."""
