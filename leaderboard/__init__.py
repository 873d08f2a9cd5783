"""From aggregates to what is published: tables and markdown, made from ``results.json`` alone."""
