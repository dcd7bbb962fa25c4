"""Look at what a compile did, and explain what a policy does to a model."""
