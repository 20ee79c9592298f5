"""Certifying whatever the evaluation can open: cases one by one, kept as they are finished."""
