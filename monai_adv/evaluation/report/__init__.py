"""From records to numbers, curves, pictures and one page."""
