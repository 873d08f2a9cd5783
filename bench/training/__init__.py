"""Networks, data sets, and how a defense learns."""
