"""Low-rank forms of layers: which there are, how they are fitted, and which ranks a budget buys."""
