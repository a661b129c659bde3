"""Private training: gradients row by row, noise, and what it has cost."""
