"""Many requests, one statement: reads of one tick are put together, and so are writes that wait for the same commit."""
