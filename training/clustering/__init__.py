"""Pictures grouped without labels: two-stage k-means over rows that need not fit in memory."""
