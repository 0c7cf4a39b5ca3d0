"""The op `place_media`."""
