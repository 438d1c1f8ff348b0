"""The SQL of the module: one statement, one function over it."""
