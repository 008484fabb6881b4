"""Where frames come from: `open.open_source` opens pictures, videos, cameras, streams and the demo."""
