"""APNs (wire.md, section 8)."""
