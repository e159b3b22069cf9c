"""Text -> vector: a frozen encoder and the table of embedded task texts."""
