"""What a good summary is: metrics, and later labels and reward models. May import `alignment`, never `recipes`."""
