"""What a good summary is: metrics, labels and reward models. May import `alignment`, never `recipes`."""
