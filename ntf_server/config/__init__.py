"""Settings, keys and lists: read from files once, into objects."""
