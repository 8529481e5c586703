"""Tests of the test bed: a fixture that quietly does nothing would make every test above it worthless."""
