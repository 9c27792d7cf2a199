"""How fast the model generates: the engine alone, beside diffusers' own loop and the card's floor, and a whole pod."""
