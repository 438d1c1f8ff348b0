"""The SQL of the identity module, a file for each group of tables."""
