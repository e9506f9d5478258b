"""Set-up: the pins, and what makes the environment from them."""
