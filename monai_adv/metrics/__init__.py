"""Scores, per-class figures and statistics: used by validation, bundles and the evaluation alike."""
