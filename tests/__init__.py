"""The tests, and the bed of real servers and faults that they stand on."""
