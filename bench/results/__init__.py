"""Records made into the rows of a run: a cell, a model, its logits, a pair."""
