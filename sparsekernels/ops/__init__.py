"""The operations, one folder each: mathematics, reference, implementations."""
