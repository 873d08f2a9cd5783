"""Claims put to the test, and the harness put to its own."""
