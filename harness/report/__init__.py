"""What is left of a run for people and machines to read."""
