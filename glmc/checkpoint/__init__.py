"""Strict reading of a Hugging Face checkpoint folder, and the way from its tensors to an architecture's parameters."""
