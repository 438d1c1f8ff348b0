"""What is known of one request: its head, its client and its caller."""
