"""Mathematics and environments; imports no other part of Qfleet."""
