"""Two-dimensional glasses and liquids: simulate, render, train a CNN, measure its collapse."""
