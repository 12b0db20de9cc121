"""What simplexmq's notification server keeps (the reference), read as records that are no engine's."""
