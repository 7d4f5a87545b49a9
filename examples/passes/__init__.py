"""Three passes to read, run and start from; docs/custom_passes.md walks through them."""
