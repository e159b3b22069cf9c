"""Learning: one update, the loops, collecting, evaluating. Newt alone; other systems come in as extensions."""
