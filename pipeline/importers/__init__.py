"""What the field already has, brought into our forms: demonstrations of five kinds, and Newt's checkpoints."""
