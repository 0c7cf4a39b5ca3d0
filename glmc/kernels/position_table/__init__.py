"""The op `position_table`."""
