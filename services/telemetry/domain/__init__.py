"""Records as values, and what follows from them."""
