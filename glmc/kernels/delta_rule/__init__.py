"""The gated delta rule, a linear attention with a recurrent state: one opaque step while tracing."""
