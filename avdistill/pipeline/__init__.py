"""What every stage shares: its command line, outputs, worker processes, progress and errors."""
