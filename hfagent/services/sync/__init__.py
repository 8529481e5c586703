"""Syncing one stream into its table: what to read (`window`), in what form (`shaping`), and the run itself (`engine`)."""
