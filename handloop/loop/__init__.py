"""Training: networks on synthetic hands, the memory of the best fits, and the loop in which both improve each other."""
