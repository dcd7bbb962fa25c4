"""Passes over the joint forward and backward graph, before the partitioner cuts it."""
