"""Episodes, training and metrics come here in a later release; until then `examples/` holds a plain training loop."""
