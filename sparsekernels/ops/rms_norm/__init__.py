"""Root mean square layer normalisation."""
