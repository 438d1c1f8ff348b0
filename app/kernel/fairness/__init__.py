"""What keeps one caller from using up what all callers share: slots, threads, turns and counts for each caller."""
