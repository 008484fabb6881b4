"""Engines on disk: written, found, and checked for whether they run here."""
