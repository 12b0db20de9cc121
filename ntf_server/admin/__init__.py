"""The operator's side of a running relay."""
