"""Training one run: the step, the loop, and what they change."""
