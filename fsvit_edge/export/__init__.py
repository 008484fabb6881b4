"""From torch to a bundle: graphs, simplification, checks, parity."""
