"""A network's sparse layers as one call, for inference."""
