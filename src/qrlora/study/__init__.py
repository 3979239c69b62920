"""Studies: what is compared with what, done as jobs that are kept, counted and reported."""
