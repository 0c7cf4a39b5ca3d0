"""The op `sample`."""
