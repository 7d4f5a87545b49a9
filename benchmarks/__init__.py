"""Benchmarks: dense against sparse, and the cost of the rewrite. Run by make bench; no test depends on them."""
