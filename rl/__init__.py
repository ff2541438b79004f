"""Mathematics and environments; knows nobody."""
