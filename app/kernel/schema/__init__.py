"""The schema of the database: its migrations, and whether the program and the database agree on its revision."""
