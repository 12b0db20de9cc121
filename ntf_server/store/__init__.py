"""What the relay keeps: one protocol (`base`), and its engines."""
