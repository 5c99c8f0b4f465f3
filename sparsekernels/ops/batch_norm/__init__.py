"""BatchNorm in training, with the sum, the limits and the dropout behind it, in one pass."""
