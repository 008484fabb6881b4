"""Data sets, episodes, training and evaluation (CST, sections 3.3 and 4)."""
