"""Read models: pure folds of the domain's events."""
