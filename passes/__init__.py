"""Graph passes over the joint forward and backward graph."""
