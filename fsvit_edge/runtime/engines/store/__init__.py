"""Engines on disk: their files, the sets that belong together, and why one will not run here."""
