"""Leave the fewest layers float that keep mAP within a budget."""
