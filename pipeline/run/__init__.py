"""What makes a run survive and be watched, whatever it learns."""
