"""Results that other programs wrote, read as rows of models that were measured elsewhere."""
