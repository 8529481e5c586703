"""The vocabulary: frozen values that cross a boundary. No behaviour beyond validation, no I/O."""
