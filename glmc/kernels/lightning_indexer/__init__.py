"""The slots that sparse attention looks at."""
