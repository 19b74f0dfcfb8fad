"""Pure functions and values: no clock, no files, no threads, no network, no logging."""
