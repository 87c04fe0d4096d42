"""Phase one: run the encoder once over all crops."""
