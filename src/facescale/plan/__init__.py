"""Will it fit: memory predicted on fake tensors, and the search for the largest."""
