"""What recipes do to weights outside the graph: a regularizer, and weights trained in parts."""
