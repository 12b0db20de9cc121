"""Backups: all that a relay needs, in one sealed file."""
