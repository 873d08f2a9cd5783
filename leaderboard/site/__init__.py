"""The page: one self-contained HTML file a run, made from its rows alone."""
