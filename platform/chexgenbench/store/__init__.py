"""The store: run directories that last, and a DuckDB file over them that answers SQL."""
