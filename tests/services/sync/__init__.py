"""Tests of the syncs."""
