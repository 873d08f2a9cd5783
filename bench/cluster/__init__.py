"""Tasks carried out on other machines, which share nothing with this one."""
