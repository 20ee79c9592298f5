"""The columns that the frames of attacks and of certificates share."""

COLUMNS = dict.fromkeys(("model", "case", "level", "norm", "eps", "unit", "attack", "measure", "value"), "str")
COLUMNS |= {"eps": "float64", "value": "float64"}
"""With their types."""
