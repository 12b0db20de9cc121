"""What is told of what happened: metrics."""
