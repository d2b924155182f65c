"""Programs that make what the repository carries: the embedded hand, the bundled examples."""
