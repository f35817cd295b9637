"""Scores, predictions, and measurements inside trained networks."""
