"""The search for the worst case: plans, the runner, and what they cost."""
