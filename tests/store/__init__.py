"""Tests of the store: whole changes or none, whatever happens to the process and the disk."""
