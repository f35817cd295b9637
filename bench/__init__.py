"""What is fast, what is lean, and against what: ``make bench`` writes RESULTS.md."""
