"""What makes a run survive, whatever is learned: processes, saves, signals, metrics."""
