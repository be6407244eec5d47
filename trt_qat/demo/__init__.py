"""Generated Vietnamese traffic signs and streets, and the small detector that was trained on them."""
