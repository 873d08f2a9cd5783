"""Models and data as others hand them over: checked, adapted, and doubted where they do not fit."""
