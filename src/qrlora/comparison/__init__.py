"""Comparisons of fusion methods: jobs that are kept, counted and reported."""
