"""The float model: its source and checkpoint, its graph, and the folding of batch norms."""
