"""Training: networks on synthetic hands, and the loop in which fits and a network improve each other."""
