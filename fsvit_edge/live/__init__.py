"""A run: sources of frames, the loop, the sinks of its results, and what keeps it alive for weeks."""
