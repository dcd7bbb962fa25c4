"""Graph passes: over the joint graph, over the forward and backward graphs, and what both are made of."""
