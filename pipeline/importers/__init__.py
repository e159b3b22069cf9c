"""What the field already has, brought into our forms: demonstrations of three kinds, and Newt's checkpoints."""
