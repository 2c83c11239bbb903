"""What operators look at: logs, metrics, latency."""
