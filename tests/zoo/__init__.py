"""A table of models: tiny, random, of every family that diffusers ships, and some that it does not."""
