"""Max pooling between sparse layers, for inference and training."""
