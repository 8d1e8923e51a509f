"""Testing: predictions, heat maps, the report."""
