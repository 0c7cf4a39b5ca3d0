"""One file a fusion; the variable `fusion` in it is the declaration."""
