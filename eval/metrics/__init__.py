"""Groups of metrics; eval.registry lists them."""
