"""Experiments as JSON files, every key that they may have, and what follows from them."""
