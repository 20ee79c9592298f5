"""One run of an evaluation, in this process or on many."""
