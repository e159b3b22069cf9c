"""Picture -> vector, by a frozen encoder. Knows neither tasks nor the world model."""
