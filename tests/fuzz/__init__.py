"""Fuzzing of all that takes bytes of strangers: `scripts/fuzz`."""
