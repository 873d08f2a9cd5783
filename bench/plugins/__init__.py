"""What a plugin is, and how it gets in: contracts, data, recipes, registry, discovery."""
