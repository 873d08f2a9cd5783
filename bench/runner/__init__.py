"""A plan carried out: keys, worker processes, schedule, progress."""
