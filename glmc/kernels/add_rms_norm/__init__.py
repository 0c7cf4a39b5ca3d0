"""The op `add_rms_norm`."""
