"""Other people's systems, each behind an extra of its own."""
