"""Comparisons of fusion methods on pairs of images: jobs, workers, stored results, statistics, reports."""
