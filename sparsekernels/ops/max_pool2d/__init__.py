"""Max pooling for inference, between sparse layers."""
