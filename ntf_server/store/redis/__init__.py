"""The shared engine: Redis or Valkey."""
