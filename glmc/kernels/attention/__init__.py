"""The op `attention`."""
