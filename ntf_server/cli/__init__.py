"""The command `ntf-server`."""
