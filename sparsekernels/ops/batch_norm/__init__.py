"""BatchNorm in training, with the limits and the dropout behind it, in one pass."""
