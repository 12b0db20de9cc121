"""ntf-relay's notification server."""
