"""What makes a run survive, whatever is learned: its processes, saves and folder, signals, and where it came from."""
