"""From records to a verdict: rates, flags, survivors, the rule."""
