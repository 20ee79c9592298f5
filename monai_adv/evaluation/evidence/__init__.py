"""What a measurement needs before it can be filed: its purpose, its decisions, its hashes, and what it leaves open."""
