"""The op `pick_lanes`."""
