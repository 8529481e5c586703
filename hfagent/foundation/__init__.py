"""Ground floor: errors, clock, paths, retry, redaction, atomic files, log set-up. No opinion about agents."""
