"""Everything that can block, fail or know the time."""
