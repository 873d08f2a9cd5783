"""What attacks share: the model as they ask it, balls, draws, losses, budgets."""
