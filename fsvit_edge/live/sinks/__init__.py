"""Where results go: `open.open_sink` opens folders, videos, JSON lines and MQTT topics."""
