"""Numbers and pictures of finished runs."""
