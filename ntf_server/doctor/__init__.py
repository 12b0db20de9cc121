"""Whether a relay's set-up is well: what `ntf-server doctor` looks at."""
