"""A module, or a part of a model, as a graph in which layers are fused."""
