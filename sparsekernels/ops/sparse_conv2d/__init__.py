"""Convolution and linear layers whose weight is fine-grained sparse; a linear layer is the 1x1 case."""
