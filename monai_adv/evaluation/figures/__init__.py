"""What an evaluation found, in numbers and words: beside the store, below the report and the evidence."""
