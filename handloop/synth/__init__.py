"""Training data without limit: hands drawn from a model and its priors, with exact labels."""
