"""The command line: ``sparsify inspect | report | bench | demo``."""
