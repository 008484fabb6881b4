"""Where results go: `open.open_sink` reads a sink's URI and gives what takes frames with their predictions."""
