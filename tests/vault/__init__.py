"""Tests of the vault: what it seals opens again, for the right caller only, for ever."""
