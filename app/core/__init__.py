"""What belongs to no module: the composed overview, health, metrics, the front page, demo data. No tables of its own."""
