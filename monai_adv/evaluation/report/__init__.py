"""Curves, pictures and one page of what was found."""
