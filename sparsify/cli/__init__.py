"""The command line: ``sparsify inspect | report | bench | search | train | opt | diff | lower | demo``."""
