"""The architecture, held by tests: layers, laziness, generated and written documents, hygiene, error codes."""
