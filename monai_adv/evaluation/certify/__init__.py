"""Certificates of what the evaluation can open, a case at a time, and what is kept of them."""
