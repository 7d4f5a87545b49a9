"""Small programs that use sparsify as its users do."""
