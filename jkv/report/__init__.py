"""Statistics, tables and figures of finished runs."""
