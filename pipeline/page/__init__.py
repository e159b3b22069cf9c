"""The page of `eft play`: a sentence goes in, and the simulated robot is seen doing it."""
