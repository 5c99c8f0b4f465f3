"""What a model keeps and what its graph rests on: whether it has changed, and how it is put back."""
