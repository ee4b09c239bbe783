"""The page of one or several runs: curves, tables, and the templates that place them."""
