"""Whatever computes a graph, behind one contract (`base.Engine`)."""
