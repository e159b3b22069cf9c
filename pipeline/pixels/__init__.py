"""Images as observations: encoders, what they add to an observation, environments and demonstrations with images."""
