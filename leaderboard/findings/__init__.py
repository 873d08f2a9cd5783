"""What a run shows, finding by finding: two sentences from the numbers, a table, a figure."""
