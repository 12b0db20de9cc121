"""FCM, HTTP v1."""
