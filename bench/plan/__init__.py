"""A matrix file, its panels, and the graph of work that they come to."""
