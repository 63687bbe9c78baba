"""Controls the operating-system process: signals, exit, caches and imports. Imports no torch."""
