"""Few-shot answers: classes enrolled from pictures, and for a frame which are present and where."""
