"""What is used where nothing is named; light to import."""

DEFAULT_POLICY = "best"  # measured best at a cost worth paying: see docs/recipes.md
