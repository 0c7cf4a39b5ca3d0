"""The op `grouped_mm`."""
