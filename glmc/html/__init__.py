"""Pages that stand alone: one file, no network, light and dark, on a desk and on a phone."""
