"""The training step, its teacher, and the loop around them."""
