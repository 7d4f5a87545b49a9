"""Dense and sparse Diffusion Transformers trained on MNIST, and what sparsity costs in FID."""
