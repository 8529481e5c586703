"""Sample data for the demonstration: a small shop, generated the same way every time."""
