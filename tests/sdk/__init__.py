"""Tests of the connector SDK."""
