"""Timing, once for everyone: what is measured, who takes turns, beside which bound, and how two reports differ."""
