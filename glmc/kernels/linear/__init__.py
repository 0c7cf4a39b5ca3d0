"""The op `linear`."""
