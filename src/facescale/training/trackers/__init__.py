"""Where a run reports: the console, metrics.jsonl and other sinks."""
