"""Where frames come from: `open.open_source` reads a SOURCE and gives what delivers its frames."""
