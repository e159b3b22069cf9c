"""Other systems beside Newt, each an `Extension` of learning: ScaleZero, MoW, M3PO, and dynamics with history."""
