"""What belongs to no module: the composed overview, health, metrics, the front page. No tables of its own."""
