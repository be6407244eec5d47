"""Leave the fewest layers float that keep mAP (or agreement) within a budget."""
