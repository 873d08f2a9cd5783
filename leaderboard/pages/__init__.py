"""Pages of markdown, made of tables and figures."""
