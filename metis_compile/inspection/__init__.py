"""Explain what a policy does to a model, without training it."""
